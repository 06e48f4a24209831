"""Timers and the bench, on a clock that the test moves: planted times must come back, in every figure and in turn."""

from __future__ import annotations

import io
import json
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import torch
from rich.console import Console

from lithe import checkpoint, measure, surgery
from lithe.bench import lanes, rows
from lithe.families.base import Family
from lithe.families.pi import Pi
from lithe.measure import Clock, Neighbours, PeakMemory, Stopwatch, ceilings, percentiles
from lithe.runtimes.base import Runtime
from lithe.surgery import KeepLayers

B = import_module("lithe.bench")  # the package's attribute of that name may be the function
PARTS = {"vision": 5.0, "prefix": 3.0, "denoise": 2.0}


class FakeTime:
    """A clock in seconds that only moves when told."""

    def __init__(self):
        self.s = 100.0

    def __call__(self) -> float:
        return self.s

    def pass_ms(self, ms: float) -> None:
        self.s += ms / 1e3


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(measure, "now", fake)
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})
    monkeypatch.setattr(measure, "_machine_s", lambda: None)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return fake


class Planted(Runtime):
    """Takes the time it is told: `parts` in ms, times `factor` of the call's number; infer takes `end_ms` more."""

    name = "planted"

    def __init__(
        self, model: Family, time: FakeTime, parts=PARTS, end_ms=1.0, factor=lambda call: 1.0, log=None, tag=""
    ):
        super().__init__(model)
        self.time, self.parts, self.end_ms, self.factor = time, parts, end_ms, factor
        self.log, self.tag, self.calls = [] if log is None else log, tag, []  # shared by all sessions

    def chunk(self, batch, noise_BHA, trace=None):
        for part, ms in self.parts.items():
            self.time.pass_ms(ms * self.factor(len(self.calls)))
            if trace:
                trace(part)
        self.log.append((self.tag, "model" if trace else "infer"))
        self.calls.append(None)
        return noise_BHA

    def infer(self, observation):
        self.time.pass_ms(self.end_ms)
        return super().infer(observation)


@pytest.fixture(scope="module")
def pico() -> Family:
    return B.load("pi:pico")


# -- instruments -----------------------------------------------------------------------------------------------------


def test_stopwatch_splits(time):
    watch = Stopwatch()
    for _ in range(2):  # a second use starts afresh
        watch.start()
        for part, ms in (("vision", 2.0), ("denoise", 3.0), ("denoise", 4.0)):
            time.pass_ms(ms)
            watch.mark(part)
        time.pass_ms(0.5)
        assert watch.stop() == pytest.approx({"total": 9.5, "vision": 2.0, "denoise": 7.0})


def test_stopwatch_on_cuda_waits_only_at_both_ends(monkeypatch):
    waits, device_ms = [], iter([10.0, 12.0, 15.0, 21.0])

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing

        def record(self, stream):
            self.at = next(device_ms)

        def elapsed_time(self, later):
            assert len(waits) == 2, "an event was read before the device was waited for"
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    watch = Stopwatch("cuda")
    watch.start()
    watch.mark("vision")
    watch.mark("prefix")
    assert len(waits) == 1
    assert watch.stop() == {"total": 11.0, "vision": 2.0, "prefix": 3.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_time_is_not_launch_time():
    x = torch.randn(8192, 8192, device="cuda")
    watch = Stopwatch("cuda")
    watch.start()
    for _ in range(20):
        x @ x
    watch.mark("matmul")
    passed = watch.stop()
    assert passed["matmul"] > 20 * 2 * 8192**3 / 1e15 * 1e3  # no GPU does a PFLOP/s in float32
    assert PeakMemory("cuda").__enter__().before >= 256
    assert ceilings("cuda", torch.bfloat16)["flops_per_s"] > 1e12


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="cpu and cuda devices, not on 'meta'"):
        Stopwatch("meta")


def test_clock_adds_up_laps_and_begins_anew(time):
    clock = Clock()
    for _ in range(3):
        time.pass_ms(100)
        clock.lap("data")
        time.pass_ms(300)
        clock.lap("step")
    assert clock.share("data") == pytest.approx(0.25)
    time.pass_ms(50)
    assert clock.take() == pytest.approx({"data": 0.3, "step": 0.9})
    clock.lap("data")  # the lap that was under way is not lost
    assert clock.take() == pytest.approx({"data": 0.05})
    assert clock.share("data") == 0.0


def test_percentiles():
    assert percentiles(np.arange(101.0)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_ceilings_count_two_flops_a_multiply_add_and_both_ways_of_a_copy(monkeypatch):
    monkeypatch.setitem(measure.SIDES, "cpu", (8, 16))
    monkeypatch.setitem(measure.COPY_MIB, "cpu", 1)
    monkeypatch.setattr(measure, "_best_s", lambda call, device: (call(), 0.5)[1])
    assert measure._probed("cpu", torch.bfloat16) == {
        "flops_per_s": 4 * 16**3,
        "bytes_per_s": 4 * 2**20,
    }


def test_ceilings_are_probed_again_and_never_fall(monkeypatch):
    monkeypatch.setitem(measure.SIDES, "cpu", (64,))
    monkeypatch.setitem(measure.COPY_MIB, "cpu", 1)
    monkeypatch.setattr(measure, "BEST", {})
    state = torch.get_rng_state()
    first = ceilings()
    assert 1e7 < first["flops_per_s"] < 1e14
    assert 1e7 < first["bytes_per_s"] < 1e13
    assert torch.equal(torch.get_rng_state(), state), "measuring draws from the process's own random numbers"
    seen = iter([(first["flops_per_s"] / 2, 3e13), (3e14, 2e13)])
    monkeypatch.setattr(measure, "_probed", lambda *key: dict(zip(("flops_per_s", "bytes_per_s"), next(seen))))
    assert ceilings() == {"flops_per_s": first["flops_per_s"], "bytes_per_s": 3e13}
    assert ceilings() == {"flops_per_s": 3e14, "bytes_per_s": 3e13}


def test_the_share_of_the_floor_is_of_the_ceilings_seen_after_the_times_too(pico, time, monkeypatch):
    seen = iter([1e9, 4e9])
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: dict.fromkeys(("flops_per_s", "bytes_per_s"), next(seen)))
    document = B.bench([Planted(pico, time)], runs=2, warmup=0)
    assert document["ceilings"] == {"cpu/float32": {"flops_per_s": 4e9, "bytes_per_s": 4e9}}
    assert document["rows"][0]["floor_ms"] == pytest.approx(pico.cost().floor_ms(4e9, 4e9), rel=1e-5)


def test_launches_are_counted_after_everything_was_timed(pico, time, monkeypatch):
    log: list = []
    asked: list[int] = []

    def counted(call, device):
        asked.append(len(log))
        call()
        return {"launches": 7}

    monkeypatch.setattr(lanes, "launches", counted)
    document = B.bench([Planted(pico, time, log=log, tag=t) for t in "AB"], runs=3, warmup=1)
    every = 2 * 2 + 2 * 2 * 4  # to look at memory, then the warm-up and three runs at both boundaries
    assert asked == [every, every + 1] and [row["launches"] for row in document["rows"]] == [7, 7]


def test_the_best_of_several_counts(time):
    took = iter([9.0, 30.0, 20.0, 25.0, 40.0, 50.0])
    assert measure._best_s(lambda: time.pass_ms(next(took)), "cpu") == pytest.approx(0.020)


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory() as peak:
        held = torch.ones(64 * measure.MIB // 4)
        del held
    if peak.mib is None:
        pytest.skip("this kernel does not tell")
    assert 60 < peak.mib < 90


@pytest.mark.parametrize(("others_s", "quiet"), [(0.0, True), (1.5, False)])
def test_only_other_processes_make_noise(monkeypatch, time, others_s, quiet):
    own = iter([50.0, 58.0, 58.0])
    machine = iter([900.0, 908.0 + others_s, 908.0 + others_s])
    monkeypatch.setattr(measure, "_own_s", lambda: next(own))
    monkeypatch.setattr(measure, "_machine_s", lambda: next(machine))
    neighbours = Neighbours()
    time.pass_ms(5000)
    assert neighbours.busy_cores() == pytest.approx(others_s / 5)
    assert neighbours.quiet() is quiet


def test_the_load_average_judges_where_the_kernel_does_not_tell(monkeypatch, time):
    assert Neighbours().quiet()
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    assert not Neighbours().quiet()


# -- bench -----------------------------------------------------------------------------------------------------------


def turns(pico: Family, time: FakeTime, runs: int, seed: int = 0) -> list[str]:
    """The order of three policies in every iteration."""
    log: list = []
    B.bench([Planted(pico, time, log=log, tag=t) for t in "ABC"], runs=runs, warmup=0, seed=seed)
    del log[: 2 * 3]  # memory is looked at before
    order = ["".join(tag for tag, _ in log[i : i + 3]) for i in range(0, len(log), 3)]
    kinds = [{kind for _, kind in log[i : i + 3]} for i in range(0, len(log), 3)]
    assert kinds == [{"model"}, {"infer"}] * runs and order[::2] == order[1::2]
    return order[::2]


def test_every_policy_takes_its_turn_in_an_order_drawn_for_each_iteration(pico, time):
    found = turns(pico, time, 40)
    assert {"".join(sorted(order)) for order in found} == {"ABC"}
    assert turns(pico, time, 4) == found[:4] and turns(pico, time, 40, seed=1) != found, "drawn by the seed"
    before = Counter(order[order.index(tag) - 1] + tag for order in found for tag in order[1:])
    assert set(before) == {"AB", "AC", "BA", "BC", "CA", "CB"}
    assert max(before.values()) < 2.5 * min(before.values()), f"someone nearly always follows the same: {before}"
    firsts = Counter(order[0] for order in found)
    assert min(firsts.values()) >= 6


def test_planted_times_come_back(pico, time):
    slow = Planted(pico, time)
    fast = Planted(pico, time, parts={"vision": 1.0, "prefix": 2.5, "denoise": 0.5}, end_ms=2.0)
    document = B.bench([slow, fast], names=["slow", "fast"], runs=8, warmup=2)
    row = document["rows"][1]
    assert row["latency_ms"] == pytest.approx(
        {"p50": 4.0, "p95": 4.0, "p99": 4.0, "vision": 1.0, "prefix": 2.5, "denoise": 0.5}, rel=1e-5
    )
    assert row["end_to_end_ms"]["p50"] == pytest.approx(6.0, rel=1e-5)
    assert row["hz"] == pytest.approx(1000 / 6, rel=1e-4)
    assert row["ratio"].pop("against") == "slow"
    assert row["ratio"] == pytest.approx({"p50": 2.5, "low": 2.5, "high": 2.5}, rel=1e-5)
    assert row["end_to_end_ratio"]["p50"] == pytest.approx(11 / 6, rel=1e-5)
    assert document["rows"][0]["ratio"]["p50"] == 1.0
    assert row["share_of_floor"] == pytest.approx(sum(pico.cost().floor_ms(1e9, 1e9).values()) / 4.0, rel=1e-3)
    assert row["flops"] == pico.cost().flops
    assert row["memory_mb"] >= sum(p.numel() * 4 for p in pico.parameters()) / 2**20 - 0.06


def test_percentiles_see_the_slow_calls(pico, time):
    one_in_ten = Planted(pico, time, parts={"vision": 1.0}, factor=lambda call: 50.0 if call % 10 == 0 else 1.0)
    latency = B.bench([one_in_ten], runs=50, warmup=0)["rows"][0]["latency_ms"]
    assert (latency["p50"], latency["p99"]) == pytest.approx((1.0, 50.0))


def test_warm_up_is_left_out(pico, time):
    cold = Planted(
        pico, time, factor=lambda call: 100.0 if call < 2 + 2 * 5 else 1.0
    )  # 2 for memory, 5 at each boundary
    row = B.bench([cold], runs=10, warmup=5)["rows"][0]
    assert row["latency_ms"]["p99"] == pytest.approx(10.0)
    assert row["end_to_end_ms"]["p99"] == pytest.approx(11.0)


def test_ratios_survive_a_drifting_machine(pico, time):
    """It slows down threefold during the run; times one after the other would say x6 or x0.7."""

    def drift(call):
        return 1.0 + call / 100

    lanes = [Planted(pico, time, parts={"denoise": ms}, factor=drift) for ms in (20.0, 10.0)]
    found = B.bench(lanes, runs=100, warmup=0)["rows"][1]["ratio"]
    assert found["p50"] == pytest.approx(2.0, rel=0.02)
    assert 1.9 < found["low"] <= found["high"] < 2.1


def test_the_interval_of_equal_policies_holds_one_and_of_others_does_not():
    rng = np.random.default_rng(7)
    misses = 0
    for seed in range(40):
        shared = rng.lognormal(0, 0.3, 100)  # what disturbs the machine disturbs both
        a, b = (10 * shared * rng.lognormal(0, 0.02, 100) for _ in range(2))
        same, twice = B.ratio(a, b, seed), B.ratio(2 * a, b, seed)
        misses += not same["low"] <= 1 <= same["high"]
        assert twice["low"] > 1.5
        assert same["high"] - same["low"] < 0.1
    assert misses <= 5


def covered(episodes: int, by_episode: bool) -> float:
    """How often the interval holds the true ratio, where a policy is slow or fast all through an episode."""
    rng, each, hits = np.random.default_rng(3), 12, 0
    member = np.repeat(np.arange(episodes), each)
    for seed in range(200):
        reference = 60 * np.exp(rng.normal(0, 0.05, episodes * each))
        own = 25 * np.exp(rng.normal(0, 0.15, episodes)[member] + rng.normal(0, 0.05, episodes * each))
        found = B.ratio(reference, own, seed, member.tolist() if by_episode else None)
        hits += found["low"] <= 60 / 25 <= found["high"]
    return hits / 200


def test_the_interval_of_recorded_episodes_is_of_whole_ones(monkeypatch):
    monkeypatch.setattr(rows, "RESAMPLES", 300)
    assert covered(8, by_episode=True) >= 0.85 > 0.8 > covered(8, by_episode=False)


def test_resampled_medians_are_medians():
    rng = np.random.default_rng(0)
    ms, times = rng.normal(size=7).round(1), rng.integers(0, 3, (50, 7)) + np.eye(1, 7, dtype=int)
    expected = [np.median(np.repeat(ms, row)) for row in times]
    assert np.allclose(rows._medians(ms, times), expected, rtol=0, atol=1e-12)
    whole = rows._clusters([5, 5, 9, 9, 9, 2], rng)
    assert (whole[:, 0] == whole[:, 1]).all() and (whole[:, 2:3] == whole[:, 2:5]).all()
    assert (whole[:, [0, 2, 5]].sum(axis=1) == 3).all() and len(np.unique(whole, axis=0)) == 10, "all that there are"


def test_the_fit_finds_the_line(pico, time):
    def lane(depth):
        model = surgery.cut(pico, [KeepLayers("trunk", tuple(range(depth)))])
        return Planted(model, time, parts={"vision": 3.0, "prefix": 0.5 * depth, "denoise": 1.5 * depth})

    document = B.bench([lane(4), lane(2), lane(3)], runs=2, warmup=0)
    fit = document["fit"]
    assert (fit["a_ms"], fit["b_ms_per_layer"], fit["ceiling"]) == pytest.approx((3.0, 2.0, 11 / 3), rel=1e-4)
    assert fit["residuals"] == pytest.approx({"pi-L4": 0, "pi-L2": 0, "pi-L3": 0}, abs=1e-6)
    assert "keys and values only" in fit["note"]
    assert "fit" not in B.bench([lane(4), lane(4)], runs=2, warmup=0)


def test_the_fit_shows_what_is_off_the_line_and_promises_no_ceiling_below_zero():
    found = B.fit({"a": (2, 2.0), "b": (4, 5.0), "c": (6, 6.0)})
    assert found["residuals"] == pytest.approx({"a": -1 / 3, "b": 2 / 3, "c": -1 / 3}, rel=1e-4)
    assert "ceiling" not in B.fit({"a": (2, 1.0), "b": (4, 5.0)})


def test_policies_of_another_kind_stay_out_of_the_fit(pico, time):
    fewer_steps = Planted(surgery.cut(pico, [KeepLayers("trunk", (0, 3))]), time)
    fewer_steps.steps = 1
    assert "fit" not in B.bench([Planted(pico, time), fewer_steps], runs=2, warmup=0)


def test_a_variant_of_a_runtime_has_a_line_of_its_own(pico, time):
    class Slow(Planted):
        title = "planted-slow"

    two = surgery.cut(pico, [KeepLayers("trunk", (0, 1))])
    runtimes = [
        kind(model, time, parts={"vision": ms + model.depth()})
        for model in (pico, two)
        for kind, ms in ((Planted, 1.0), (Slow, 20.0))
    ]
    document = B.bench(runtimes, names=["fast4", "slow4", "fast2", "slow2"], runs=2, warmup=0)
    assert [(fit["runtime"], fit["a_ms"], set(fit["residuals"])) for fit in document["fits"]] == [
        ("planted", pytest.approx(1.0), {"fast4", "fast2"}),
        ("planted-slow", pytest.approx(20.0), {"slow4", "slow2"}),
    ]
    assert [row["runtime"] for row in document["rows"]] == ["planted", "planted-slow"] * 2


def test_a_variant_is_as_good_a_name_as_a_family():
    for variant in ("pi0", "pi05"):
        assert B.load(f"{variant}:pico").config.variant == variant
    with pytest.raises(ValueError, match="did you mean 'pi'"):
        B.load("pi06:pico")


def test_every_depth_runtime_and_number_of_steps_takes_part(pico):
    asked = {"layers": (4, 2), "runtimes": ("eager", "packed"), "steps": (2, 1)}
    document = B.bench([pico], names=["pi"], runs=2, warmup=0, **asked)
    rows = {row["policy"]: row for row in document["rows"]}
    assert list(rows) == [f"pi-L{n}/{r}/{s}" for n in (4, 2) for s in (2, 1) for r in ("eager", "packed")]
    for name, row in rows.items():
        depth, runtime, steps = name.removeprefix("pi-L").split("/")
        assert (row["depth"], row["runtime"], row["steps"]) == (int(depth), runtime, int(steps))
        text = row["text_tokens"] if "text_tokens" in row else document["settings"]["text_tokens"]
        shallow = pico if row["depth"] == 4 else surgery.cut(pico, [KeepLayers("trunk", (0, 1))])
        told = shallow.packed_cost if runtime == "packed" else shallow.cost
        assert row["flops"] == told(text=text, steps=row["steps"]).flops
    words = {row["runtime"]: row["text_tokens"] for row in rows.values()}
    assert words["packed"] < words["eager"] == pico.config.text, "a fast runtime is charged for what it computes"
    assert [(fit["runtime"], fit["steps"]) for fit in document["fits"]] == [
        (runtime, steps) for steps in (2, 1) for runtime in ("eager", "packed")
    ]
    assert document["fits"][0]["like"] == "pi-L4/eager/2" and set(document["fits"][0]["residuals"]) == {
        "pi-L4/eager/2",
        "pi-L2/eager/2",
    }


def test_a_real_run_states_everything_and_is_json(pico, tmp_path):
    checkpoint.save(surgery.cut(pico, [KeepLayers("trunk", (0, 3))]), tmp_path / "small")
    before = torch.get_num_threads()
    document = B.bench(["pi:pico", tmp_path / "small"], runs=3, warmup=1, steps=2, views=1, threads=1)
    assert torch.get_num_threads() == before
    assert json.loads(json.dumps(document)) == document
    told = document["settings"]
    asked = {
        "runs": 3,
        "warmup": 1,
        "steps": 2,
        "views": 1,
        "masked_views": 1,
        "threads": 1,
        "dtype": "float32",
        "horizon": 4,
    }
    assert asked.items() <= told.items()
    assert {"quiet", "load_average", "text_tokens", "text_tokens_real", "image", "device", "runtime"} <= told.keys()
    assert [row["policy"] for row in document["rows"]] == ["pi:pico", "small"]
    for row in document["rows"]:
        split = row["latency_ms"]
        assert {"p50", "p95", "p99", "vision", "prefix", "denoise"} == split.keys()
        assert row["flops"] == pico.cost(views=1, steps=2).flops or row["depth"] == 2
        assert 0 < row["share_of_floor"] < 1


def test_policies_of_other_projects_are_timed_as_they_are(foreign, tmp_path, monkeypatch):
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})
    vision = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
    stats = {"action": {"q01": [3.0] * 4, "q99": [5.0] * 4}}
    folder = foreign.lerobot(Pi.fresh("pico", vision=vision), tmp_path / "policy", stats)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder))
    document = B.bench([folder, "lab/other"], runs=2, warmup=0)
    assert [row["policy"] for row in document["rows"]] == ["policy", "other"]
    assert document["rows"][0]["flops"] == document["rows"][1]["flops"]
    for name in (folder, "lab/other"):  # only presets get statistics that nobody measured
        assert B.load(name).normalizer.stats["action"]["q99"].tolist() == [5.0] * 4
    assert B.load("pi:pico").normalizer.stats["action"]["q99"].tolist() == [1.0] * 4


def test_each_policy_s_own_number_of_steps_is_told(pico, time):
    document = B.bench([Planted(pico, time)], runs=2, warmup=0)
    assert document["settings"]["steps"] == pico.config.steps
    one, two = Planted(pico, time), Planted(pico, time)
    one.steps, two.steps = 1, 2
    both = B.bench([one, two], runs=2, warmup=0)
    assert "steps" not in both["settings"]
    assert [row["steps"] for row in both["rows"]] == [1, 2]


@pytest.mark.parametrize("load", [0.0, 5.0])
def test_the_caption_says_whether_the_machine_was_quiet(pico, time, monkeypatch, load, caplog):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    document = B.bench([Planted(pico, time)], runs=2, warmup=0)
    page = io.StringIO()
    Console(width=200, file=page).print(B.table(document))
    text = page.getvalue()
    assert ("THE MACHINE WAS BUSY" in text) == ("do not quote" in caplog.text) == (load > 0)
    assert "this machine only" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": 1}, "at least 2 runs"),
        ({"names": ["a"]}, "a name of its own"),
        ({"names": ["a", "a"]}, "a name of its own"),
        ({"baseline": "pi-L5"}, "did you mean 'pi-L4'"),
        ({"views": 3}, "views must be from 1 to 2"),
        ({"steps": 7}, "steps=None was given to a bench of steps=7"),
        ({"runtimes": []}, "at least one policy and one runtime"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"image": -3}, "image must be at least 1, not -3"),
        ({"steps": (2, 0)}, r"steps must be at least 1, not \(2, 0\)"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"device": "cuda:7"}, "device='cuda:7' is not among the 1 CUDA devices"),
    ],
)
def test_what_cannot_be_done_is_refused(pico, time, monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message):
        B.bench([Planted(pico, time), Planted(pico, time)], **{"runs": 2, "warmup": 0, **settings})


def test_different_tasks_are_not_compared(pico, time):
    longer = Pi.fresh("pico", horizon=8)
    longer.normalizer, longer.tokenizer = pico.normalizer, pico.tokenizer
    with pytest.raises(ValueError, match="different horizon cannot be compared"):
        B.bench([pico, longer], runs=2, warmup=0)
    with pytest.raises(ValueError, match="at least one policy"):
        B.bench([])
