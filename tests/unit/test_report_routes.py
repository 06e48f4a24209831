"""The report on students that decide which layers run: what is recorded, what is drawn of it, and twenty at once."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lithe import api, checkpoint, recipe, result, surgery
from lithe.data.fake import FakeData
from lithe.distill import distill, finish
from lithe.evaluate import evaluate
from lithe.evaluate.rollout import Job, Player, Setup
from lithe.families.pi import Pi
from lithe.methods._depth import highest
from lithe.report import labels, report, trail
from lithe.report.importance import rank_correlation
from lithe.report.labels import ROOMS, Spot, spots
from lithe.report.strips import read, strips
from lithe.report.trail import Chunk, Tracker, Trail
from lithe.routers._continuity import Continuity
from lithe.sims.fake import FakeSim

DEPTH, TASKS, HORIZON, STEPS = 6, ("reach-red", "reach-blue"), 24, 2
METHODS = {
    "dysl": {"static": (1, 5), "rank": 2, "controller": 3, "eta": 0.01, "eta1": 0.02},
    "actdistill": {"router_width": 16, "start": 0.2},
    "mole": {"keep": 3},
    "deer": {"samples": 16, "least": 2},
}


# -- what the real verbs write ---------------------------------------------------------------------------------------


def moved(model: torch.nn.Module, by: float = 0.1) -> Pi:
    """No parameter is 0 any more: a layer that does nothing cannot be missed, and a router decides something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def student(teacher: Pi, data: FakeData, name: str) -> Pi:
    """Untrained, with a router that was moved at random, so that it decides one thing here and another there."""
    method = api.method(name, **METHODS[name]).calibrated(teacher, data)
    made = surgery.cut(teacher, method.cut(teacher)).eval()
    moved(made.router, 0.3)
    if name == "dysl":
        for controller in made.router.controllers.values():
            torch.nn.init.constant_(controller.up.bias, 3.0)  # fires wherever it may
    finish(method, made, data, torch.device("cpu"))
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A teacher, a student of every routed method, an evaluation of all with film strips, a profile, a short run."""
    home, cameras = tmp_path_factory.mktemp("home"), FakeSim.cameras
    data = FakeData(cameras=cameras, size=16)
    teacher = moved(Pi.fresh("pico", cameras=cameras, depth=DEPTH))
    unit, middle = {"q01": [-1.0] * 4, "q99": [1.0] * 4}, np.array([0.3, 0.3, -0.25, 0.0])
    stats = {"observation.state": unit, "action": {"q01": middle - 0.5, "q99": middle + 0.5}}
    teacher.fit_to(stats, [FakeSim.instruction(task) for task in FakeSim.tasks()], cameras)
    checkpoint.save(teacher, home / "teacher")
    for name in METHODS:
        checkpoint.save(student(teacher, data, name), home / name)
    folders = {name: home / name for name in ("teacher", *METHODS)}
    policies, names = list(folders.values()), list(folders)
    brief = {"horizon": HORIZON, "steps": STEPS, "processes": 1, "out": home / "eval"}
    played = evaluate(policies, "fake", TASKS, 1, seed=10, names=names, **brief)
    result.save(played, home / "eval.json")
    strips(played, folders, home / "strips", size=16)
    alike = import_module("lithe.profile").profile(home / "teacher", data, samples=4, batch=4, times=(1.0, 0.5))
    result.save(alike, home / "profile.json")
    train = recipe.Train(steps=20, batch=2, draws=1, warmup=2, precision="fp32")
    distill(teacher, api.method("actdistill", features="none", router_width=16), data, train, home / "run")
    return home


@pytest.fixture
def played(home) -> dict:
    return json.loads((home / "eval.json").read_text())


@pytest.fixture(scope="module")
def page(home) -> str:
    return text(report([home / "eval.json", home / "profile.json", home / "run"], home / "page.html"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def seen(page: str) -> str:
    """What can be read, in one line."""
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "", page, flags=re.DOTALL)).replace("\u00a0", " ")


def drawings(page: str, begin: str) -> list[tuple[str, str]]:
    """(what it says it shows, markup) of every drawing whose words begin so."""
    found = re.findall(r'<svg class="plot" role="img" aria-label="([^"]*)"(.*?)(?=<svg class="plot"|</figure>|$)', page)
    return [(html.unescape(alt), drawn) for alt, drawn in found if html.unescape(alt).startswith(begin)]


def section(page: str, name: str) -> str:
    (found,) = re.findall(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
    return found


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_a_trail_is_what_the_layers_did(home):
    """Against the modules themselves, the runtime's own count, and C by the formula of the paper."""
    setup = Setup({name: str(home / name) for name in ("teacher", *METHODS)}, "fake", HORIZON, steps=STEPS)
    player = Player(setup)
    for name, policy in player.policies.items():
        tracker = Tracker(policy)
        record = player.play(Job(name, "reach-red", 10), tracker)
        if name == "teacher":
            assert tracker.trail is None
            continue
        trail, told = tracker.trail, record["layers"]
        passes = [layers for chunk in trail.chunks for layers in chunk.passes]
        assert (trail.depth, len(trail.chunks)) == (DEPTH, record["inferences"])
        assert [chunk.step for chunk in trail.chunks] == list(range(0, record["steps"], policy.spec.replan))
        assert len(passes) == told["passes"] and sum(chunk.repeated for chunk in trail.chunks) == told["repeated"]
        assert [sum(layer in layers for layers in passes) for layer in range(DEPTH)] == told["ran"]
        assert len({chunk.ran for chunk in trail.chunks}) > 1 or name in ("mole", "actdistill"), f"{name} is no test"
        assert (trail.chunks[-1].continuity is not None) == (name == "dysl")


def test_a_chunk_is_noted_at_its_first_step_with_all_its_passes():
    memory = SimpleNamespace(continuity=None)
    policy = SimpleNamespace(routed=True, taken=[], repeated=0, memory=memory, model=SimpleNamespace(depth=lambda: 3))
    tracker = Tracker(policy)
    tracker(0, False)
    policy.taken.append(SimpleNamespace(run=(True, False, True)))
    tracker(1, False)
    tracker(2, False)
    policy.taken += [SimpleNamespace(run=(True, False, False)), SimpleNamespace(run=(True, True, True))]
    policy.repeated, memory.continuity = 1, -0.5
    tracker(3, True)
    whole = Chunk(0, ((0, 2),)), Chunk(2, ((0,), (0, 1, 2)), -0.5)
    assert tracker.trail == Trail(3, whole)
    assert [(chunk.ran, chunk.repeated) for chunk in whole] == [((0, 2), False), ((0,), True)]
    policy.routed = False
    assert tracker.trail is None, "of a policy that decides nothing there is none"


def test_continuity_is_that_of_the_executed_actions(home, monkeypatch):
    executed, sound = [], Continuity.note
    monkeypatch.setattr(Continuity, "note", lambda self, a_HA: (executed.append(a_HA.copy()), sound(self, a_HA)))
    player = Player(Setup({"dysl": str(home / "dysl")}, "fake", HORIZON, steps=STEPS))
    tracker = Tracker(player.policies["dysl"])
    player.play(Job("dysl", "reach-red", 10), tracker)
    k, replan = player.policies["dysl"].model.router.guidance.k, len(executed[0])
    steps = np.linalg.norm(np.diff(np.concatenate(executed).astype(np.float64), axis=0), axis=-1)
    for i, chunk in enumerate(tracker.trail.chunks):
        ends = [e for e in range(max(k, i * replan), (i + 1) * replan) if e >= k]
        expected = min((-steps[e - k : e].mean() for e in ends), default=None)
        assert chunk.continuity == (pytest.approx(expected, abs=1e-9) if expected is not None else None)
    assert sum(chunk.continuity is not None for chunk in tracker.trail.chunks) > 3


def test_the_index_keeps_the_trails_of_those_that_decide(home, played):
    entries = json.loads((home / "strips" / "strips.json").read_text())["strips"]
    assert {entry["policy"] for entry in entries if "trail" in entry} == set(METHODS)
    ledger = [json.loads(line) for line in (home / "eval" / "ledger.jsonl").read_text().splitlines()[1:]]
    counted = {(r["policy"], r["task"], r["seed"]): r["layers"] for r in map(record, ledger) if "layers" in r}
    for strip in read(home / "strips"):
        if strip.trail is None:
            continue
        told = counted[strip.policy, strip.task, strip.seed]
        runs = [layers for chunk in strip.trail.chunks for layers in chunk.passes]
        assert [sum(len(run) == n for run in runs) for n in range(DEPTH + 1)] == told["counts"]
        assert trail.read(trail.written(strip.trail)) == strip.trail


def record(line: dict) -> dict:
    return line.get("record", line)


def spoil(path: str, value):
    """A change of the first chunk, of the whole trail, or of the entry."""

    def change(entry: dict) -> None:
        place, keys = entry["trail"], path.split(".")
        for key in keys[:-1]:
            place = place[int(key) if key.isdigit() else key]
        place[int(keys[-1]) if keys[-1].isdigit() else keys[-1]] = value

    return change


DAMAGE = {
    "a layer that is not there": spoil("chunks.0.passes", [[0, DEPTH]]),
    "a layer twice": spoil("chunks.0.passes", [[1, 1]]),
    "three passes": spoil("chunks.0.passes", [[0]] * 3),
    "no pass": spoil("chunks.0.passes", []),
    "a second pass that is not whole": spoil("chunks.0.passes", [[0], [0, 1]]),
    "steps out of order": spoil("chunks.1.step", 0),
    "a late beginning": spoil("chunks.0.step", 1),
    "a chunk behind the end": spoil("chunks.0.step", 10**6),
    "C that is no number": spoil("chunks.0.continuity", float("nan")),
    "chunks of another kind": spoil("chunks", [3]),
    "no depth": spoil("depth", None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_trail_is_refused(home, tmp_path, kind):
    shutil.copytree(home / "strips", tmp_path / "strips")
    index = json.loads((tmp_path / "strips" / "strips.json").read_text())
    DAMAGE[kind](next(entry for entry in index["strips"] if "trail" in entry))
    (tmp_path / "strips" / "strips.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"strips.json is damaged \(.*make the film strips again"):
        report([tmp_path / "strips"], tmp_path / "page.html")


def test_strips_that_were_made_before_there_were_trails_are_shown(home, tmp_path):
    shutil.copytree(home / "strips", tmp_path / "strips")
    index = json.loads((tmp_path / "strips" / "strips.json").read_text())
    for entry in index["strips"]:
        entry.pop("trail", None)
    (tmp_path / "strips" / "strips.json").write_text(json.dumps(index))
    page = text(report([tmp_path / "strips"], tmp_path / "page.html"))
    assert page.count("<img") > 20 and "which layers" not in page and "Layers that ran" not in page


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_each_strip_has_its_layers_below_it(home, page):
    routed = [strip for strip in read(home / "strips") if strip.trail]
    found = drawings(section(page, "film-strips"), "Layers that ran in ")
    assert len(found) == len(routed) == len(METHODS) * len(TASKS)
    for strip, (alt, drawn) in zip(sorted(routed, key=lambda s: TASKS.index(s.task)), found, strict=True):
        chunks = strip.trail.chunks
        ran = [len(chunk.ran) for chunk in chunks]
        assert alt.startswith(f"Layers that ran in {strip.policy} on {strip.task}, seed 10, chunk by chunk: ")
        told = f"mean {sum(ran) / len(ran):.1f} of {DEPTH}, from {min(ran)} to {max(ran)}"
        assert (told if len(set(ran)) > 1 else f"{ran[0]} of {DEPTH} in every chunk") in alt
        assert drawn.count('class="floor"') == sum(chunk.repeated for chunk in chunks), "a triangle for each repetition"
        tips = re.findall(r"<title>steps (\d+) to (\d+): (\d+) layers? of", drawn)
        ends = [chunk.step for chunk in chunks[1:]] + [strip.steps]
        assert [tuple(map(int, tip)) for tip in tips] == [
            (c.step + 1, end, n) for c, end, n in zip(chunks, ends, ran, strict=True)
        ]
        assert ("smoothness C" in drawn) == (strip.policy == "dysl")
    assert any(chunk.repeated for strip in routed for chunk in strip.trail.chunks), "nothing was repeated: no test"


def test_a_chunk_stands_under_its_pictures(home, page):
    """Both axes agree at every picture, however unevenly the pictures are spread."""
    strip = next(strip for strip in read(home / "strips") if strip.trail)
    _, drawn = drawings(section(page, "film-strips"), f"Layers that ran in {strip.policy} on {strip.task}")[0]
    middles = [float(x) for x in re.findall(r'<line x1="([\d.]+)%"[^>]*y1="0"[^>]*class="grid">', drawn)][:6]
    assert middles == [pytest.approx(100 * (i + 0.5) / 6, abs=0.01) for i in range(6)]
    places = re.findall(r'<rect x="([\d.]+)%" width="([\d.]+)%" y="0"[^>]*><title>steps (\d+) to (\d+)', drawn)
    steps = [step for step, _ in strip.frames]
    for left, width, first, last in places:
        ends = np.interp([int(first) - 1, int(last)], steps, middles)
        assert (float(left), float(left) + float(width)) == pytest.approx(tuple(ends), abs=0.02)


def test_maps_and_counts_are_those_of_the_evaluation(page, played):
    here = section(page, "layers-that-ran")
    rows = {row["policy"]: row for row in played["rows"] if "layers_run" in row}
    maps, counts = drawings(here, "Share of passes in which"), drawings(here, "Share of passes of")
    assert list(rows) == list(METHODS) and len(maps) == len(counts) == len(rows)
    for row, (_, drawn), (told, bars) in zip(rows.values(), maps, counts, strict=True):
        lines = [("all tasks", row["layers_run"]), *((t, row["tasks"][t]["layers_run"]) for t in TASKS)]
        for task, found in lines:
            for layer, share in enumerate(found["each"]):
                assert f"<title>{task}: layer {layer} ran in {100 * share:.3g} % of passes</title>" in drawn
            assert f">{found['mean']:.2f} layers<" in drawn
        for n in range(DEPTH + 1):
            share = 100 * row["layers_run"]["histogram"].get(str(n), 0.0)
            assert f"<title>{n}: {share:.6g}</title>" in bars
            assert not share or f"{n} layers {share:.3g} %" in told
    assert len({tuple(row["layers_run"]["each"]) for row in rows.values()}) > 2, "the toys are no test"


def test_continuity_stands_against_skipping_for_whoever_knows_it(home, page):
    trails = [strip.trail for strip in read(home / "strips") if strip.policy == "dysl"]
    known = [b for t in trails for a, b in zip(t.chunks, t.chunks[1:]) if a.continuity is not None]
    ((alt, drawn),) = drawings(section(page, "layers-that-ran"), "Layers run by ")
    assert alt.startswith(f"Layers run by dysl over the smoothness C of the movement, {len(known)} chunks")
    assert drawn.count('class="dot ') + drawn.count('class="again-mark"') == len(known)
    assert drawn.count('class="again-mark"') == sum(chunk.repeated for chunk in known)


def test_only_who_decides_has_a_section(home, played, tmp_path):
    played["rows"] = played["rows"][:1]
    page = text(report([result.save(played, tmp_path / "eval.json")], tmp_path / "page.html"))
    assert "Layers that ran" not in page and "layers run, mean" not in page


def test_what_a_routed_row_lacks_is_left_out(played, tmp_path):
    for key in ("mean", "histogram", "each", "repeated"):
        planted = copy.deepcopy(played)
        for row in planted["rows"]:
            for found in (row, *row["tasks"].values()):
                found.get("layers_run", {}).pop(key, None)
        report([result.save(planted, tmp_path / "eval.json")], tmp_path / "page.html")


def test_notes_are_no_losses(page, home):
    here = section(page, "training")
    losses, notes = here.split("</figure>")[:2]
    assert drawings(losses, "task over steps") and not drawings(losses, "share of layers run")
    assert "note/" not in here
    ((alt, drawn),) = drawings(notes + "</figure>", "share of layers run over steps")
    lines = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert f"to {np.median([line['note/layers_run'] for line in lines]):.3f}"[:6] in alt
    assert "no part of it" in notes and "last share of layers run" in seen(here)
    assert ">1<" in drawn and ">0<" in drawn, "a share is drawn on an axis from 0 to 1"


def test_every_score_stands_beside_what_was_measured(page, home):
    here, document = section(page, "layer-scores"), json.loads((home / "profile.json").read_text())
    assert [alt.partition(":")[0] for alt, _ in drawings(here, "")][:2] == ["skipped", "skipped"]
    assert len(drawings(here, "1 − cosine")) == 2
    for kind, values in document["scores"].items():
        ((alt, drawn),) = drawings(here, f"Score {kind},")
        kept = [i for i, kind in enumerate(re.findall(r'class="(kept c0|unchosen)"', drawn)) if kind == "kept c0"]
        assert tuple(kept) == highest(values, DEPTH // 2), "half of the layers, where no student says how many"
        assert drawn.count('class="over"') == 1
        rank = rank_correlation(values, document["sensitivity"]["actions"])
        assert f"{kind}</strong> ρ = {rank:+.2f}".replace("-", "−") in here
    assert f"keep={DEPTH // 2}, half of them," in here
    assert "With 6 layers, unrelated orders have a ρ between −0.88 and +0.88" in here


def test_scores_are_cut_as_the_students_of_the_page_were(home, played, tmp_path):
    played["settings"]["policies"]["teacher"]["history"] = [{"op": "KeepLayers", "stack": "trunk", "layers": [0, 5]}]
    path = result.save(played, tmp_path / "eval.json")
    assert "keep=2, as the students here," in text(report([path, home / "profile.json"], tmp_path / "page.html"))


def test_scores_alone_need_no_sensitivity(home, tmp_path):
    document = json.loads((home / "profile.json").read_text())
    del document["sensitivity"]
    here = section(text(report([result.save(document, tmp_path / "p.json")], tmp_path / "page.html")), "layer-scores")
    assert "ρ =" not in here and 'class="over"' not in here and "ρ with 1 − cosine, trunk" in seen(here)


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # ties at their mean rank
    assert rank_correlation([5, 1, 4, 2, 3], [1, 5, 2, 3, 4]) == pytest.approx(-0.9)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


# -- names in a scatter ----------------------------------------------------------------------------------------------

share = st.floats(0, 1)
place = st.tuples(share, st.floats(0, 300))


def inside(box, x, y, slack=0.0):
    return box[0] + slack < x < box[2] - slack and box[1] + slack < y < box[3] - slack


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(place, min_size=1, max_size=12), st.lists(st.tuples(place, place), max_size=4))
def test_a_name_covers_no_point_no_line_and_no_other_name(points, lines):
    for widths in ROOMS.values():
        found = spots(points, [9] * len(points), lines, 300, widths, range(len(points)))
        for width in widths:
            boxes = {i: spot.box((points[i][0] * width, points[i][1]), 9) for i, spot in found.items()}
            for i, box in boxes.items():
                assert box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= 300
                assert not any(inside(box, x * width, y) for x, y in points)
                assert not any(a != i and labels._overlap(box, other) for a, other in boxes.items())
                for (x, y), (x2, y2) in lines:
                    along = np.linspace(0, 1, 100)
                    dots = zip(width * (x + along * (x2 - x)), y + along * (y2 - y))
                    assert not any(inside(box, *dot, slack=1e-6) for dot in dots)


def test_a_name_stands_near_its_point_where_it_can_and_is_led_to_it_where_not():
    (alone,) = spots([(0.3, 150)], [10], [], 300, ROOMS["tight"], [0]).values()
    assert (alone.dx, alone.dy, alone.leader) == (10, 19, False)
    (edge,) = spots([(0.99, 150)], [10], [], 300, ROOMS["tight"], [0]).values()
    assert edge.side == -1
    blocked = [((0.0, y), (1.0, y)) for y in (134, 142, 150, 158, 166)]
    (led,) = spots([(0.5, 150)], [10], blocked, 300, ROOMS["tight"], [0]).values()
    assert led.leader
    (other,) = [
        s for i, s in spots([(0.5, 150), (0.5, 178)], [6, 6], [], 300, ROOMS["roomy"], [0, 1]).items() if i == 0
    ]
    assert (other.dx, other.dy) == (10, -10), "below, it would be taken for the name of the other one"
    assert spots([(0.5, 150)], [60], [], 300, ROOMS["tight"], [0]) == {}, "a name wider than the page"


def test_the_first_to_choose_gets_the_better_place():
    points = [(0.5, 150), (0.5, 151)]
    both = [spots(points, [8, 8], [], 300, ROOMS["roomy"], order) for order in ([0, 1], [1, 0])]
    assert both[0][0] == both[1][1] == Spot(10, 19, 1)


# -- a leaderboard ---------------------------------------------------------------------------------------------------


@pytest.fixture
def board(played, tmp_path) -> str:
    """Twenty policies, half of them routed, from a row of each kind that the verbs wrote."""
    rng, rows, timed = np.random.default_rng(5), [], []
    kinds = {row["policy"]: row for row in played["rows"]}
    for i in range(20):
        name = "teacher" if i == 0 else f"{list(METHODS)[i % 4]}-{'long-name-' * (i % 3)}{i}"
        row = copy.deepcopy(kinds["teacher" if i == 0 or i % 2 else list(METHODS)[i % 4]])
        depth = 12 if i == 0 else int(rng.choice([3, 4, 6, 8]))
        rate, ms = float(rng.uniform(0.6, 0.95)), (8 + 3.5 * depth) * float(rng.uniform(0.9, 1.1))
        whole = timed[0]["latency_ms"]["p50"] if i else ms
        row |= {"policy": name, "success": {"rate": rate, "n": 400, "low": rate - 0.03, "high": rate + 0.03}}
        if i:
            difference = rate - rows[0]["success"]["rate"]
            pair = {"difference": difference, "low": difference - 0.04, "high": difference + 0.04, "n": 400}
            row["paired"] = {"against": "teacher", **pair}
        rows.append(row)
        ratio = whole / ms
        found = {"policy": name, "depth": depth, "latency_ms": {"p50": ms, "p95": ms * 1.2, "p99": ms * 2}}
        timed.append(
            {**found, "ratio": {"against": "teacher", "p50": ratio, "low": ratio * 0.95, "high": ratio * 1.05}}
        )
        entrant = {**played["settings"]["policies"]["teacher"], "weights": f"{i:064x}"}
        played["settings"]["policies"][name] = entrant
    played["rows"], fit = rows, {"a_ms": 8.0, "b_ms_per_layer": 3.5, "ceiling": 6.25}
    fit["residuals"] = {row["policy"]: 0.0 for row in timed}
    bench = result.make("bench", "board", {"quiet": True}, timed, fit=fit)
    paths = [result.save(d, tmp_path / f"{d['kind']}.json") for d in (played, bench)]
    return text(report(paths, tmp_path / "board.html", title="twenty policies"))


def test_a_leaderboard_has_everybody_in_its_tables(board, played):
    readable = seen(board)
    names = re.findall(r"<span class=\"fit\"><span class=\"who\">.*?</svg>([^<]+)</span>", board)
    assert len(set(names)) == 20
    assert '<span class="fit">reach-red</span></th><th' in board, "tasks are the columns where policies are more"
    front = section(board, "success-against-time")
    for room in ROOMS:
        drawn = re.findall(rf'<g class="{room}">.*?<text[^>]*>([^<]+)</text></g>', front)
        listed = re.findall(rf'<p class="legend {room}">(.*?)</p>', front)
        assert len(drawn) == len(set(drawn)) >= 4
        assert len(drawn) + sum(text.count('class="who"') for text in listed) == 20, "everybody is named once"
    assert "17 more policies are in the table." in readable or "16 more policies are in the table." in readable


# -- in a browser ----------------------------------------------------------------------------------------------------


def test_a_browser_draws_routed_policies_and_a_leaderboard(page, board, browser):
    windows = {"wide": (page, 1280, "light"), "narrow": (page, 390, "dark")}
    windows |= {"board": (board, 1280, "light"), "small-board": (board, 390, "light")}
    windows["middle-board"] = (board, 560, "dark")
    found, _ = browser(windows)
    assert found["board"]["names"] > found["small-board"]["names"] > 4
    assert found["wide"]["height"] < found["narrow"]["height"]
