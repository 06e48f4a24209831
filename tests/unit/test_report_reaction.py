"""The report's section on real time: a line a policy, its figures, words where nothing else was evaluated."""

from __future__ import annotations

import json
import re

import pytest

from lithe.evaluate import reaction as meaning
from lithe.evaluate import statistics
from lithe.evaluate.outcome import in_real_time
from lithe.evaluate.realtime import timings
from lithe.report import report
from lithe.report.material import gather

STUDENT = "student<b>"


def document(execution="async", latency="0,50,100", moving="jump", policies=("teacher", "student")) -> dict:
    """As `evaluate` writes it."""
    timed, sources = timings(latency, policies, 80.0)
    rows = []
    for k, (name, timing) in enumerate(timed.items()):
        won = [i >= timing.delay + k for i in range(20)]
        figures = {"success": statistics.success(won), "held": 0.25}
        if moving:
            steps = statistics.middle([timing.delay + i for i in range(8)])
            figures["reaction"] = {"steps": steps, "histogram": {}, "moved": 9, "missed": 1}
        rows.append({"policy": name, **figures, "tasks": {"reach-red": dict(figures)}})
    in_real_time(rows, timed, 80.0)
    settings = {"tasks": ["reach-red"], "episodes": 20, "execution": execution, "fps": 80.0, "latency_from": sources}
    settings |= {"sim_options": {"moving": moving} if moving else {}, "against": rows[0]["policy"]}
    settings |= {"policies": {name: {} for name in timed}, **({"reaction": meaning.MEANING} if moving else {})}
    return {"kind": "eval", "name": "fake", "settings": settings, "rows": rows}


@pytest.fixture
def build(tmp_path):
    def page(*documents: dict) -> str:
        paths = [tmp_path / f"{i}.json" for i in range(len(documents))]
        for path, content in zip(paths, documents, strict=True):
            path.write_text(json.dumps(content))
        return report(paths, tmp_path / "page.html").read_text()

    return page


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_section_shows_a_line_a_policy_and_the_figures_behind_it(build):
    page = build(document())
    assert sections(page) == ["Reaction", "Provenance"], "rows at a latency are no policies of their own elsewhere"
    drawings = re.findall(r'<svg class="plot".*?</svg></div>', page, re.DOTALL)
    assert len(drawings) == 2
    for drawn in drawings:
        assert drawn.count('class="line c0"') == drawn.count('class="line c1"') == 2, "three points, two lines between"
        assert drawn.count("<title>teacher</title>") == 3
    assert drawings[1].count('class="bound"') == 1, "nobody is faster than the latency"
    assert "teacher 43.8 ms at 0 ms, 93.8 ms at 50 ms" in page, "3.5 steps at 80 Hz are 43.8 ms"
    assert "teacher@50ms" in page and "student@100ms" in page and "7.5 <span" in page


def test_the_first_words_are_its_own_where_nothing_else_was_evaluated(build):
    page = build(document())
    assert "no closed-loop evaluation" not in page
    assert "<strong>teacher</strong> solves 100.0" in page and "at 0\u00a0ms and 50.0" in page
    plain = {"kind": "bench", "rows": [{"policy": "teacher", "latency_ms": {"p50": 3.0}}], "settings": {}}
    both = build(document(), plain)
    assert "The median latency of <strong>teacher</strong> is" in both and "At a glance" in both
    assert sections(both) == ["Speed", "Reaction", "Provenance"]


def test_what_was_not_measured_is_left_out_and_what_is_odd_is_escaped(build):
    page = build(document(moving=None, policies=("teacher", STUDENT)), document("sync", "10"))
    assert STUDENT not in page and "student&lt;b&gt;@50ms" in page
    first = page.split("<h3>")[1]
    assert first.count('class="plot"') == 1 and "reaction, ms" not in first
    assert page.count('class="plot"') == 3 and "the robot stands still" in page
    bare = document()
    for row in bare["rows"]:
        for key in ("success", "reaction", "held"):
            row.pop(key)
    assert "late by, steps" in build(bare)


def test_a_reaction_without_delays_stands_in_the_table(build):
    waits = document()
    for row in waits["rows"]:
        row.pop("realtime")
    waits["settings"] = {key: value for key, value in waits["settings"].items() if key not in ("execution", "fps")}
    page = build(waits)
    assert sections(page)[:2] == ["Success", "Reaction"] and "moved" in page


def test_a_line_breaks_where_nothing_was_reached_and_an_interval_can_be_open(build):
    given = document(latency="0,25,50,75")
    for row in given["rows"]:
        if row["realtime"]["latency_ms"] == 50:
            row["reaction"] |= {"missed": 8, "steps": {"n": 9}, "seconds": {"n": 9}}
        if row["realtime"]["latency_ms"] == 75:
            row["reaction"]["seconds"].pop("high")
    page = build(given)
    rates, times = re.findall(r'<svg class="plot".*?</svg></div>', page, re.DOTALL)
    assert rates.count('class="line c0"') == 3 and times.count('class="line c0"') == 1, "0 to 25 ms, and no further"
    assert times.count("<title>teacher</title>") == 3
    assert times.count('class="whisker c0"') == 3 + 3 + 2, "an open end has no cap"
    assert "<td>not reached</td>" in page and "∞]" in page


def test_where_a_latency_is_from_and_how_far_it_is_from_the_next_step_is_told(build, tmp_path):
    rows = [{"policy": n, "end_to_end_ms": {"p50": ms}} for n, ms in (("teacher", 64.6126), ("student", 24.9))]
    rows[1]["runtime"] = "packed"
    told = {"rows": rows, "settings": {"dtype": "bfloat16", "device": "cpu"}, "hardware": {"cpu": "A processor"}}
    (tmp_path / "bench.json").write_text(json.dumps({"kind": "bench", **told}))
    page = seen(build(document(latency=str(tmp_path / "bench.json"))))
    assert "Latencies of bench.json (teacher): end to end, p50, measured on A processor, bfloat16." in page
    assert "bench.json (student): end to end, p50, measured on A processor, packed, bfloat16." in page
    assert "to the next step, ms" in page and "0.10" in page and "10.4" in page, "75 - 64.61, 25 - 24.9"
    assert "to the next step" not in build(document())


def waits(won: int, moving: str | None = None) -> dict:
    """An evaluation that waits for the policies, as `evaluate` writes it."""
    rows = []
    for name, more in (("teacher", 0), ("student", 1)):
        figures = {"success": statistics.success([i < won + more for i in range(20)])}
        ran = {"layers_run": {"each": [1.0, 0.5], "mean": 1.5, "histogram": {"1": 0.5, "2": 0.5}}}
        rows.append({"policy": name, **figures, **ran, "tasks": {"reach-red": dict(figures)}})
    settings = {"tasks": ["reach-red"], "episodes": 20, "policies": {}, "against": "teacher"}
    settings |= {"sim_options": {"moving": moving} if moving else {}}
    return {"kind": "eval", "name": "fake", "settings": settings, "rows": rows}


def seen(page: str) -> str:
    return re.sub(r"<[^>]*>", "", re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL)).replace("\u00a0", " ")


def glance(page: str) -> list[str]:
    """The heads of the first table."""
    return [seen(head) for head in re.findall(r"<th.*?</th>", page.split("<table")[1])]


def test_an_evaluation_in_which_something_moves_is_another_one_everywhere(build):
    timed = [{"policy": name, "latency_ms": {"p50": 3.0 + i}} for i, name in enumerate(("teacher", "student"))]
    page = build(waits(5), waits(10, "jump"), {"kind": "bench", "rows": timed, "settings": {}})
    moving = "fake, moving target (jump)"
    assert {"success, %, fake", f"success, %, {moving}"} <= set(glance(page)), "one column would hide the other"
    first = seen(page.split("</table>")[0])
    assert "of 20 episodes on fake." in first and f"of 20 episodes on {moving}." in first
    assert "30.0 [" in first and "55.0 [" in first
    assert page.count("<h3>fake</h3>") == page.count(f"<h3>{moving}</h3>") == 2, "success, and layers that ran"
    assert "is better (fake, timed" in page and f"is better ({moving}, timed" in page
    alone = build(waits(10, "drift"))
    assert "success, %, fake, moving target (drift)" in glance(alone) and "on fake, moving target (drift)" in seen(
        alone
    )
    assert glance(build(waits(5)))[1] == "success, %", "what waits and stands still alone needs no more words"


def test_two_evaluations_of_one_name_are_told_apart_by_their_files(build, tmp_path):
    found = [head for head in glance(build(waits(5), waits(10))) if head.startswith("success")]
    assert found == [f"success, %, fake, {tmp_path.name}/{i}.json" for i in range(2)]
    for folder in ("a", "b"):
        (tmp_path / folder / "same").mkdir(parents=True)
        (tmp_path / folder / "same" / "eval.json").write_text(json.dumps(waits(5)))
    material = gather([tmp_path / folder / "same" / "eval.json" for folder in ("a", "b")])
    assert [material.title(d) for d in material.evaluations()] == ["fake, same/eval.json", "fake, same/eval.json (2)"]
    late = build(document("sync"), document("sync", "10"), waits(5))
    assert f"<h3>fake, sync, moving target (jump), {tmp_path.name}/1.json</h3>" in late


def test_policies_keep_one_colour_at_every_latency(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(document()))
    material = gather([tmp_path / "a.json"])
    assert material.names() == ["teacher", "student"] and not material.of("eval")


def test_a_browser_draws_it_wide_narrow_and_dark(build, browser):
    page = build(document(), document("sync"))
    browser({"wide": (page, 1000, "light"), "narrow": (page, 390, "dark")})
