"""The bench of policies that decide themselves which layers run: what they see, what is timed, what a row says.

The clock is the test's: a pass takes as many milliseconds as layers run in it, and ten more for what it sees.
"""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from lithe import measure, result, surgery
from lithe._layers import layers_run
from lithe.bench import lanes, rows
from lithe.bench.feed import Episodes, episodes
from lithe.cli import app
from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.report import report
from lithe.reproduce import table as gates
from lithe.routers.base import Memory, Router
from lithe.runtimes.eager import Eager
from lithe.runtimes.packed import Packed
from lithe.surgery import InstallRouter, KeepLayers
from lithe.types import Route
from lithe.work import Parts, Work

B = import_module("lithe.bench")  # the package's attribute of that name may be the function
ROOT = Path(__file__).parents[2]
CAMERAS, DEPTH, REPLAN, SEES_MS = ("corner2", "gripperPOV"), 4, 2, 10.0
ROUTERS: dict[str, dict[str, Any]] = {
    "gates": {"width": 8},
    "star": {"keep": 2, "width": 8},
    "controllers": {"static": (0, 3), "rank": 2, "hidden": 3},
    "exits": {"exits": (2, 3), "shares": (1.0, 1.0, 1.0), "reference": 1, "action_dim": 4},
}


def frames(**settings: Any) -> FakeData:
    return FakeData(**{"cameras": CAMERAS, "episodes": 6, "length": 10, "size": 16, **settings})


DATA = frames()


def policy(depth: int = DEPTH) -> Any:
    model = Pi.fresh("pico", steps=1)
    model.fit_to(DATA.stats, DATA.tasks, DATA.cameras)
    return surgery.cut(model, [KeepLayers("trunk", tuple(range(depth)))]).eval()


def routed(kind: str) -> Any:
    model = surgery.cut(policy(), [InstallRouter(kind, ROUTERS[kind])])
    if kind == "exits":
        model.router.thresholds.fill_(1e8)
    return model.eval()


class Third(Memory):
    """Of an episode: nothing may be skipped first, and every third observation is doubted."""

    def __init__(self) -> None:
        self.seen = 0

    def note(self, actions_HA: np.ndarray) -> None:
        self.seen += 1

    def doubts(self, actions_HA: np.ndarray) -> bool:
        return self.seen % 3 == 2


class Jumpy(Router):
    """Jumps over layers 1 and 2, at every observation of an episode but the first."""

    name = "jumpy"

    def memory(self) -> Memory:
        return Third()

    def landing(self, i: int) -> int | None:
        return 3 if i == 1 else None

    def allows(self, i: int, memory: Memory | None) -> bool:
        return not isinstance(memory, Third) or memory.seen > 0

    def crosses(self, *asked: Any) -> bool:
        return True

    def work(self, route: Route, parts: Parts) -> dict[str, Work]:
        return {"prefix": Work(1000.0)}


LAYERS = (4, 2, 6, 2, 2)  # that Jumpy runs in the five observations of an episode; the third is computed again
PASSES = (1, 1, 2, 1, 1)


def jumpy() -> Any:
    model = policy()
    model.router = Jumpy(model.streams)
    return model


@pytest.fixture
def clock(monkeypatch):
    """Milliseconds pass where layers of the expert run and where pictures are looked at, and nowhere else."""
    now = [100.0]

    def take(ms: float) -> Any:
        return lambda *_: now.__setitem__(0, now[0] + ms / 1e3)

    def wind(model: Any) -> Any:
        model.vision.register_forward_hook(take(SEES_MS))
        for layer in model.expert.layers:
            layer.register_forward_hook(take(1.0))
        return model

    monkeypatch.setattr(measure, "now", lambda: now[0])
    return wind


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})
    monkeypatch.setattr(measure, "_machine_s", lambda: None)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_fast_runtime_is_overruled_as_eager_is(kind):
    model = routed(kind)
    batch, noise_BHA = model.example(1), model.noise(1, torch.Generator().manual_seed(0))
    found = {}
    for session in (Eager(model), Packed(model)):
        for short in (True, False):
            session.reset()
            with lanes.overruled(session, short):
                session.chunk(batch, noise_BHA)
            found[session.name, short] = session.taken[-1].run
    assert found["packed", True] == found["eager", True] and found["packed", False] == found["eager", False]
    assert sum(found["packed", True]) < sum(found["packed", False]) == DEPTH


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_feed_is_whole_episodes_at_the_policy_s_pace_and_tasks_take_turns():
    found = episodes(DATA, 11, REPLAN, seed=3)
    assert len(found) == 15 and sorted(found.begins) == [0, 5, 10], "whole episodes, at least as many as were asked for"
    firsts = [found.frames[i] for i in sorted(found.begins)]
    assert all(first % 10 == 0 for first in firsts) and len(set(firsts)) == 3
    assert found.frames == tuple(frame for first in firsts for frame in range(first, first + 10, REPLAN))
    tasks = [DATA.samples(np.array([first]), 1)["task"][0] for first in firsts]
    assert tasks[0] != tasks[1] == DATA.tasks[1 - DATA.tasks.index(tasks[0])] and found.tasks == 2
    assert episodes(DATA, 11, REPLAN, seed=3) == found
    assert {episodes(DATA, 11, REPLAN, seed=n).frames[0] for n in range(8)} > {found.frames[0]}


def test_the_feed_goes_on_until_every_task_was_met_but_not_for_ever():
    assert [len(episodes(DATA, least, REPLAN, 3)) for least in (1, 2, 3, 5)] == [5, 5, 10, 10]
    one = episodes(DATA, 2, REPLAN, 3).facts()
    assert one == {"inputs": "FakeData", "episodes": 1, "tasks": 1, "tasks_in_data": 2}, "what was not seen is said"
    assert episodes(DATA, 5, REPLAN, 3).facts()["tasks"] == 2


def test_every_observation_knows_its_episode_and_one_that_comes_again_is_the_same():
    found = episodes(frames(episodes=2), 12, REPLAN, seed=0)
    first, second = found.frames[0], found.frames[5]
    assert found.episode == [first] * 5 + [second] * 5 + [first] * 5


def test_intervals_of_recorded_episodes_draw_whole_ones(clock, monkeypatch):
    drawn = []
    sound = rows.ratio
    monkeypatch.setattr(rows, "ratio", lambda *a, **k: (drawn.append(k["episode"]), sound(*a, **k))[1])
    timed(clock)
    assert drawn == [episodes(DATA, 6, REPLAN, 0).episode] * 4 and len(set(drawn[0])) == 2
    B.bench([clock(policy())], runs=2, warmup=0)
    assert drawn[4:] == [None, None], "without episodes there are none to draw"


def test_a_small_data_set_comes_again():
    found = episodes(frames(episodes=2), 12, REPLAN, seed=0)
    assert len(found) == 15 and found.frames[:5] == found.frames[10:] != found.frames[5:10]
    assert [found.seen_by(CAMERAS)(i)[1] for i in range(17)] == [i % 5 == 0 for i in range(15)] + [True, False]


def test_a_policy_sees_its_own_cameras_of_the_recorded_frame():
    observation, begins = episodes(DATA, 2, REPLAN, seed=0).seen_by(CAMERAS[1:])(1)
    frame = episodes(DATA, 2, REPLAN, seed=0).frames[1]
    sample = DATA.samples(np.array([frame]), 1)
    assert not begins and set(observation) == {"observation.images.gripperPOV", "observation.state", "task"}
    assert (observation["observation.images.gripperPOV"] == sample["images"]["gripperPOV"][0]).all()
    assert (observation["observation.state"] == sample["state"][0]).all() and observation["task"] == sample["task"][0]


def test_all_policies_see_the_same_at_both_boundaries():
    seen: dict[str, list] = {}

    class Looking(Eager):
        tag = ""

        def answer(self, batch, noise_BHA, trace=None):
            boundary = f"{self.tag} {'model' if trace else 'infer'}"
            seen.setdefault(boundary, []).append((batch.images_BVCYX.sum().item(), noise_BHA.sum().item()))
            return super().answer(batch, noise_BHA, trace)

    lanes = [Looking(policy()), Looking(policy(2)), Looking(jumpy())]
    for lane, tag in zip(lanes, "ABC"):
        lane.tag = tag
    B.bench(lanes, names=list("ABC"), runs=7, warmup=0, data=DATA)
    timed = {boundary: found[-10:] for boundary, found in seen.items()}
    assert len(timed) == 6 and len(set(timed["A model"])) == 10
    assert all(found == timed["A model"] for found in timed.values())


# -- what is timed -----------------------------------------------------------------------------------------------------


def check_times(document: dict[str, Any]) -> None:
    """Of Jumpy against a static policy of every layer, over whole episodes of five observations."""
    row, took = document["rows"][1], [SEES_MS * p + n for n, p in zip(LAYERS, PASSES)] * 2
    for key in ("latency_ms", "end_to_end_ms"):
        for q in (50, 95, 99):
            assert row[key][f"p{q}"] == pytest.approx(np.percentile(took, q), rel=1e-5), f"{key} p{q}"
    for key in ("ratio", "end_to_end_ratio"):
        assert row[key]["p50"] == pytest.approx(14 / np.median(took), rel=1e-5)
        assert row[key]["low"] <= row[key]["p50"] <= row[key]["high"]
    assert (row["closed_ms"], row["open_ms"]) == pytest.approx((12.0, 14.0), rel=1e-5)
    ran = row["layers_run"]
    assert ran["mean"] == pytest.approx(np.mean(LAYERS)) and ran["repeated"] == pytest.approx(1 / 5)
    assert ran["histogram"] == pytest.approx({"2": 4 / 6, "4": 2 / 6})
    assert ran["each"] == pytest.approx([1.0, 2 / 6, 2 / 6, 1.0], abs=1e-6)


def timed(clock: Any) -> dict[str, Any]:
    return B.bench([clock(policy()), clock(jumpy())], names=["all", "jumpy"], runs=6, warmup=3, data=DATA)


def test_router_and_repeated_passes_are_inside_both_boundaries(clock):
    document = timed(clock)
    check_times(document)
    told = document["settings"]
    assert {"runs": 10, "inputs": "FakeData", "episodes": 2, "tasks": 2, "replan": REPLAN}.items() <= told.items()
    assert "layers_run" not in document["rows"][0] and "fit" not in document


def test_the_parts_of_a_repeated_pass_add_up(clock):
    lane = lanes.Lane("x", Eager(clock(jumpy())), episodes(DATA, 5, REPLAN, 0).seen_by(CAMERAS), 2, {}, 0)
    for place in range(5):
        lane.face(place)
        lane.run_model()
    for times, layers, passes in zip(lane.model_ms, LAYERS, PASSES, strict=True):
        parts = {part: ms for part, ms in times.items() if part != "total"}
        assert sum(parts.values()) == pytest.approx(times["total"]) == pytest.approx(SEES_MS * passes + layers)
        assert parts == pytest.approx({"vision": SEES_MS * passes, "prefix": 0.0, "denoise": layers})


def test_flops_are_the_mean_over_what_ran(clock):
    static, row = timed(clock)["rows"]
    model = jumpy()
    whole = model.cost()
    short = whole.parts.along(Route((True, False, False, True)))
    passes = {part: 2 * whole.flops[part] + 4 * short[part].flops for part in whole.flops}  # of one episode
    passes["prefix"] += 5 * 1000.0
    assert row["flops"] == pytest.approx({part: flops / 5 for part, flops in passes.items()})
    assert row["flop_share"] == pytest.approx(sum(passes.values()) / 5 / whole.total_flops, abs=1e-6)
    assert (static["flops"], static["flop_share"], row["router_flops"]) == (whole.flops, 1.0, 1000.0)
    floor = sum(max(row["flops"][part], row["bytes"][part]) / 1e9 * 1e3 for part in row["flops"])
    assert sum(row["floor_ms"].values()) == pytest.approx(floor, rel=1e-5)


def bug(name: str) -> Any:
    """A way of measuring that is wrong."""

    def one_session(patch):
        sound = lanes.Lane.__init__

        def init(self, *args):
            sound(self, *args)
            self.outer = self.inner

        patch.setattr(lanes.Lane, "__init__", init)

    def one_episode(patch):
        sound = Episodes.seen_by

        def seen_by(self, cameras):
            feed = sound(self, cameras)
            return lambda place: (feed(place)[0], place == 0)

        patch.setattr(Episodes, "seen_by", seen_by)

    def no_repeats(patch):
        patch.setattr(lanes.Lane, "run_model", _chunk_alone)

    def not_overruled(patch):
        patch.setattr(lanes.Overruled, "crosses", lambda self, *asked: self.router.crosses(*asked))

    return {f.__name__: f for f in (one_session, one_episode, no_repeats, not_overruled)}[name]


def _chunk_alone(self: Any) -> None:
    watch = measure.Stopwatch("cpu")
    watch.start()
    self.inner.chunk(self.batch, self._noise(self.inner), watch.mark)
    self.model_ms.append(watch.stop())
    self.spent.append(self._spent(self.inner.taken[-1:]))


@pytest.mark.parametrize("name", ["one_session", "one_episode", "no_repeats", "not_overruled"])
def test_a_wrong_way_of_measuring_is_caught(name, clock, monkeypatch):
    bug(name)(monkeypatch)
    with pytest.raises(AssertionError):
        check_times(timed(clock))


def test_a_twin_is_another_session_of_the_same_model():
    first = Eager(jumpy(), steps=1)
    second = first.twin(seed=5)
    assert type(second) is Eager and second.model is first.model and second.steps == 1
    assert second.memory is not first.memory and second.generator.initial_seed() == 5
    second.infer(episodes(DATA, 1, REPLAN, 0).seen_by(CAMERAS)(0)[0])
    assert (first.memory.seen, len(first.taken), second.memory.seen, len(second.taken)) == (0, 0, 1, 1)


# -- the routers that there are ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(B, "ceilings", lambda device, dtype: {"flops_per_s": 1e9, "bytes_per_s": 1e9})
        models = [policy(), policy(2), *map(routed, ROUTERS)]
        patch.setattr(measure, "_machine_s", lambda: None)
        patch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
        return B.bench(models, names=["teacher", "first-two", *ROUTERS], runs=6, warmup=1, data=DATA)


def test_every_router_s_row_says_everything(document):
    rows = {row["policy"]: row for row in document["rows"]}
    assert json.loads(json.dumps(document)) == document
    assert {kind: rows[kind]["layers_run"]["mean"] for kind in ("star", "exits")} == {"star": 2.0, "exits": 2.0}
    for kind in ROUTERS:
        row = rows[kind]
        assert sum(row["layers_run"]["histogram"].values()) == pytest.approx(1.0) and row["router_flops"] > 0
        assert min(row["closed_ms"], row["open_ms"]) > 0 and len(row["layers_run"]["each"]) == DEPTH
    assert rows["star"]["flop_share"] < rows["gates"]["flop_share"] > 1.0, "untrained gates are open, and cost"
    assert set(document["fit"]["residuals"]) == {"teacher", "first-two"}, "a routed policy has no place on the line"


def static_rows(kind: str) -> dict[str, Any]:
    """A published Result, of which only policies are left that decide nothing."""
    found = result.load(ROOT / "results" / "cpu-epyc-2" / f"pi05-mini-metaworld.{kind}.json")
    return {**found, "rows": [row for row in found["rows"] if "layers_run" not in row]}


def test_the_tables_fit_a_terminal_and_say_what_was_run(document):
    page = io.StringIO()
    Console(width=80, file=page).print(B.table(document))
    text = page.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    flat = " ".join(text.split())
    for told in ("closed / p50 / open", "2.00 of 4", "2.0/4", "10 recorded observations: 2 episodes, 2 of 2 tasks"):
        assert told in flat, told
    before = static_rows("bench")
    page = io.StringIO()
    Console(width=80, file=page).print(B.table(before))
    assert "closed" not in page.getvalue() and "shallow_pi-4" in page.getvalue()


def test_the_page_tells_what_was_run_and_stays_silent_without_routed_policies(document, tmp_path):
    def page(rows: list) -> str:
        path = result.save({**document, "rows": rows}, tmp_path / f"{len(rows)}.json")
        return report([path], path.with_suffix(".html")).read_text()

    whole, static = page(document["rows"]), page(document["rows"][:2])
    for told in ("Layers run", "closed, ms", "fewest to most", "recorded observations of 2 episodes"):
        assert told in whole
    assert "Layers run" not in static and "closed, ms" not in static


def test_readme_tables_tell_routed_rows_and_leave_others_as_they_were(document, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = import_module("tables")
    evaluation = static_rows("eval")
    old = tables.section(Path("x.eval.json"), evaluation, static_rows("bench"))
    assert "closed" not in old and "| FLOPs |" not in old
    row = {**evaluation["rows"][0], "policy": "star", "layers_run": {"mean": 2.0}}
    new = tables.section(Path("x.eval.json"), {**evaluation, "rows": [evaluation["rows"][0], row]}, document)
    head, *lines = [line for line in new.splitlines() if line.startswith("|")]
    assert head.endswith("| FLOPs | p95 / p99 ms | closed / open ms |") and "10 recorded observations" in new
    assert {line.count("|") for line in (head, *lines)} == {head.count("|")} and "| 2.0 of 4 |" in lines[-1]


def test_a_row_of_reproduce_shows_layers_and_effort():
    ran, train = {"eval": {"mean": 5.25}}, {"trainable_parameters": 2_500_000, "seconds": 600.0}
    rows = [{"policy": "x", "gate": {}, "layers": 12, "layers_run": ran, "flop_share": 0.4, "train": train}]
    console = Console(width=80, record=True)
    console.print(gates({"rows": rows}))
    flat = " ".join(console.export_text().split())
    assert "x 5.25 of 12 40 2.5 10" in flat


def test_layers_are_counted_as_in_closed_loop():
    """One arithmetic for both: means count what was repeated, shares are of all passes."""
    episode = {"passes": 4, "repeated": 1, "ran": [4, 2, 2, 4], "counts": [0, 0, 2, 0, 2]}
    found = layers_run([episode, {"passes": 1, "repeated": 0, "ran": [1, 0, 0, 1], "counts": [0, 0, 1, 0, 0]}])
    assert found == {
        "mean": (2 * 2 + 2 * 4 + 2) / 4,
        "histogram": {"2": 3 / 5, "4": 2 / 5},
        "each": [1.0, 0.4, 0.4, 1.0],
        "repeated": 1 / 4,
    }


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "jumpy decides by what it sees.*give --data"),
        ({"data": frames(cameras=("corner2", "top"))}, "all looks through camera 'gripperPOV', the data has corner2"),
        ({"data": frames(state_dim=5)}, "all is for 4 state dimensions, the data has 5"),
        ({"image": 32}, "image=32 is for random pictures"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        B.bench([policy(), jumpy()], names=["all", "jumpy"], **{"runs": 2, "warmup": 0, "data": DATA, **settings})


def test_one_camera_is_enough_for_a_policy_that_is_run_with_one():
    document = B.bench([policy()], runs=2, warmup=0, views=1, data=frames(cameras=("corner2",)))
    assert document["settings"]["views"] == 1 and document["settings"]["image"] == 16


def test_policies_of_another_pace_are_not_fed_together():
    hasty = Pi.fresh("pico", replan=1)
    hasty.fit_to(DATA.stats, DATA.tasks, DATA.cameras)
    with pytest.raises(ValueError, match="different replan cannot be compared"):
        B.bench([policy(), hasty], runs=2, warmup=0, data=DATA)
    assert "replan" not in B.bench([policy(), hasty], runs=2, warmup=0)["settings"]


def test_the_command_line_opens_the_data(tmp_path):
    done = CliRunner().invoke(app, ["bench", "pi:pico", "--data", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, ValueError) and "is not a LeRobotDataset" in str(done.exception)


def test_the_memory_of_a_lane_s_model_is_left_alone():
    """A user's own session does not notice that it was timed."""
    session = Eager(jumpy(), seed=3)
    before = session.generator.get_state()
    B.bench([session], runs=2, warmup=1, data=DATA)
    assert session.memory.seen == 0 and torch.equal(session.generator.get_state(), before)
    assert isinstance(session.model.router, Jumpy)
