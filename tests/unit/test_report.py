"""The report: made of what the real verbs write, honest in words, harmless whatever it is fed, drawn by a browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lithe import api, checkpoint, recipe, result
from lithe._disk import sha256
from lithe.data.fake import FakeData
from lithe.distill import distill
from lithe.evaluate import evaluate
from lithe.explain import explain
from lithe.families.pi import Pi
from lithe.report import report
from lithe.report.anatomy import kept_layers
from lithe.report.material import gather
from lithe.report.scales import Scale, points, short, signed
from lithe.report.strips import Reel, png, spread, strips
from lithe.sims.fake import FakeSim

TASKS, EVIL = ("reach-red", "reach-blue"), '<script>alert("x")</script>&amp;\'</style>'
KINDS = ("eval", "bench", "profile", "explain")
SECTIONS = {
    "eval": ["Success", "What was cut", "Film strips", "Provenance"],
    "bench": ["Speed", "What was cut", "Provenance"],
    "profile": ["Layers over denoise time", "Layer scores", "Provenance"],
    "explain": ["What was cut", "Provenance"],
    "student": ["What was cut", "Training", "Provenance"],
    "strips": ["Film strips"],
}


# -- what the real verbs write ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A teacher, a student distilled from it, and a Result of every kind, as the verbs write them."""
    home, cameras = tmp_path_factory.mktemp("home"), FakeSim.cameras
    data = FakeData(cameras=cameras, size=16)
    teacher = Pi.fresh("pico", cameras=cameras)
    middle = np.array([0.3, 0.3, -0.25, 0.0])  # drifts to a corner, so that some episodes succeed
    stats = {
        "observation.state": {"q01": [-1.0] * 4, "q99": [1.0] * 4},
        "action": {"q01": middle - 0.5, "q99": middle + 0.5},
    }
    teacher.fit_to(stats, [FakeSim.instruction(task) for task in FakeSim.tasks()], cameras)
    checkpoint.save(teacher, home / "teacher")
    method, train = api.method("shallow_pi", keep=2), recipe.Train(steps=20, batch=4, warmup=2, precision="fp32")
    distill(teacher, method, data, train, home / "student")
    folders = {"teacher": home / "teacher", "student": home / "student" / "student"}
    played = evaluate(list(folders.values()), "fake", TASKS, 4, seed=10, names=list(folders), processes=1)
    strips(played, folders, home / "strips", size=32)
    times = import_module("lithe.bench").bench(list(folders.values()), list(folders), runs=3, warmup=1)
    alike = import_module("lithe.profile").profile(home / "teacher", data, samples=4, batch=4, times=(1.0, 0.5))
    for document in (played, times, alike, explain(home / "teacher", method).document):
        result.save(document, home / f"{document['kind']}.json")
    return home


@pytest.fixture
def documents(home) -> dict[str, dict]:
    return {kind: json.loads((home / f"{kind}.json").read_text()) for kind in KINDS}


@pytest.fixture
def build(tmp_path):
    """Writes planted Results and returns their page, parsed."""

    def build(*planted: dict, **settings) -> Page:
        paths = [result.save(document, tmp_path / f"{i}.json") for i, document in enumerate(planted)]
        return Page(report(paths, tmp_path / "page.html", **settings))

    return build


class Page(HTMLParser):
    """A page taken apart; every element must be closed in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.elements, self.open = path.read_text(encoding="utf-8"), [], []
        self.words: dict[str, list[str]] = {}
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self.open[-1] if self.open else "", []).append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def seen(self) -> str:
        """What can be read, in one line."""
        body = re.sub(r"<style>.*?</style>|<title>.*?</title>", "", self.text, flags=re.DOTALL)
        return html.unescape(re.sub(r"<[^>]*>", "", body)).replace("\u00a0", " ")


def everything(home: Path) -> list[Path]:
    return [*(home / f"{kind}.json" for kind in KINDS), home / "student"]


@pytest.fixture(scope="module")
def whole(home) -> Path:
    return report(everything(home), home / "page.html", title="a teacher & its student")


# -- what is on the page ---------------------------------------------------------------------------------------------


def test_it_has_every_section_and_the_numbers_of_the_results(whole, documents):
    page = Page(whole)
    assert page.words["h2"] == [
        "Success",
        "Speed",
        "Success against time",
        "What was cut",
        "Layers over denoise time",
        "Layer scores",
        "Training",
        "Film strips",
        "Provenance",
    ]
    assert page.words["h1"] == page.words["title"][:1] == ["a teacher & its student"]
    assert [link["href"] for link in page.of("a")] == [f"#{section['id']}" for section in page.of("section")]
    for row in documents["eval"]["rows"]:
        s = row["success"]
        assert f"{100 * s['rate']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" in page.seen
    for row in documents["bench"]["rows"]:
        for key in ("p50", "p95", "p99"):
            assert short(row["latency_ms"][key]) in page.seen
            assert short(row["end_to_end_ms"][key]) in page.seen
    assert "2 of 4 layers" in page.seen
    assert "20 of 20" in page.seen
    for term in ("task", "kd/velocity", "kd/attention"):
        assert f"last {term}" in page.seen
    assert documents["eval"]["settings"]["policies"]["student"]["weights"] in page.seen


@pytest.mark.parametrize("given", SECTIONS)
def test_sections_appear_for_what_is_given(home, tmp_path, given):
    path = home / given if (home / given).is_dir() else home / f"{given}.json"
    assert Page(report([path], tmp_path / "page.html")).words["h2"] == SECTIONS[given]


def test_a_run_counts_as_the_policy_that_was_evaluated_with_its_weights(home, tmp_path):
    shutil.copytree(home / "student", tmp_path / "another-name")
    page = Page(report([home / "eval.json", tmp_path / "another-name"], tmp_path / "page.html"))
    assert "another-name" not in page.seen
    assert "another-name" in Page(report([tmp_path / "another-name"], tmp_path / "page.html")).seen


def test_runs_of_equal_weights_keep_their_own_names(home, documents, tmp_path):
    """An ablation that acts only when the policy runs has the weights of its method."""
    document, name = documents["eval"], "ablation"
    document["settings"]["policies"][name] = document["settings"]["policies"]["student"]
    document["rows"].append({**document["rows"][-1], "policy": name})
    shutil.copytree(home / "student", tmp_path / name)
    inputs = [result.save(document, tmp_path / "eval.json"), home / "student", tmp_path / name]
    told = [run.name for run in gather(inputs).trainings]
    assert told == ["student", name]


def test_a_policy_has_one_colour_and_mark_everywhere(whole):
    shown = re.findall(
        r'<span class="who"><svg[^>]*><path d="([^"]*)" class="mark (c\d)"></path></svg>(.*?)</span>', whole.read_text()
    )
    looks = {name: {(mark, hue) for mark, hue, other in shown if other == name} for _, _, name in shown}
    assert set(looks) == {"teacher", "student"}
    assert all(len(look) == 1 for look in looks.values())
    assert looks["teacher"] != looks["student"]


def test_every_drawing_and_picture_says_what_it_shows(whole):
    page = Page(whole)
    drawings = [svg for svg in page.of("svg") if svg.get("role") == "img"]
    assert len(drawings) > 10
    assert all(len(svg["aria-label"]) > 20 for svg in drawings)
    assert len(page.of("img")) == 24
    assert all(re.search(r"on reach-\w+, seed 10, after \d+ steps", img["alt"]) for img in page.of("img"))
    assert len(page.words["figcaption"]) >= 8


# -- what it says ----------------------------------------------------------------------------------------------------

VERDICTS = [
    ((-0.2, -0.1), (2.0, 2.2), "a loss that chance does not explain", "2.10× [2.00, 2.20] lower"),
    ((-0.041, 0.02), (0.9, 1.1), "a loss of up to 4.1 points is not excluded", "so that no difference can be told"),
    ((0.01, 0.2), (0.4, 0.5), "a gain that chance does not explain", "2.22× [2.00, 2.50] higher"),
    ((0.0, 0.3), (2.0, 2.2), "no loss was seen", "lower"),
    ((-0.3, 0.2), (2.0, 2.2), "too few to tell, anything from a loss of 30.0 points to a gain of 20.0", "lower"),
]


@pytest.mark.parametrize(("paired", "ratio", "success", "speed"), VERDICTS)
def test_the_verdict_says_what_the_intervals_allow(documents, build, paired, ratio, success, speed):
    acted, timed = documents["eval"], documents["bench"]
    acted["rows"][1]["paired"] |= {"difference": sum(paired) / 2, "low": paired[0], "high": paired[1]}
    timed["rows"][1]["ratio"] |= {"p50": sum(ratio) / 2, "low": ratio[0], "high": ratio[1]}
    seen = build(acted, timed).seen
    assert success in seen
    assert speed in seen


def test_what_spoils_a_number_stands_in_front_of_it(documents, build):
    documents["bench"]["settings"]["quiet"] = False
    documents["profile"]["settings"]["inputs"] = "random"
    documents["eval"]["rows"][1]["paired"]["same_start"] -= 1
    seen = build(*documents.values()).seen
    for warning in ("Timed on a busy machine", "Profiled on random inputs", "Not all pairs began alike"):
        assert seen.index(warning) < seen.index("difference, points")
    assert "(timed on a busy machine)" in seen
    documents["bench"]["settings"]["quiet"] = True
    assert "busy machine" not in build(documents["bench"]).seen


def test_without_success_and_times_it_says_so(documents, build):
    assert "nothing on this page says how well a policy acts" in build(documents["profile"]).seen


def test_a_policy_timed_otherwise_than_it_acted_is_pointed_out(documents, build):
    documents["bench"]["settings"]["steps"] += 1
    assert "Mind that teacher acted with steps" in build(documents["eval"], documents["bench"]).seen


def test_one_policy_alone(documents, build):
    for kind in ("eval", "bench"):
        documents[kind]["rows"] = documents[kind]["rows"][:1]
    page = build(*documents.values())
    assert "Success against time" not in page.words["h2"]
    assert re.search(r"teacher solves [\d.]+ % \[.*?\] of 8 episodes", page.seen)


def test_many_policies_keep_apart(documents, build):
    rows = documents["eval"]["rows"]
    rows += [{**copy.deepcopy(rows[1]), "policy": f"student-{i}"} for i in range(20)]
    page = build(documents["eval"])
    found = re.findall(r'<path d="([^"]*)" class="mark (c\d)"></path></svg>student-\d+<', page.text)
    assert len(set(found)) == 20
    assert "18 more policies are in the table." in page.seen


@pytest.mark.parametrize("kind", KINDS)
def test_any_field_may_be_absent(documents, build, kind):
    """Each optional field of the document, of its settings and of its rows, taken away by itself."""
    document = documents[kind]
    places = [(), ("settings",), *(("rows", i) for i in range(len(document["rows"])))]
    for place in places:
        for key in list(reach(document, place)):
            if (place, key) in (((), "kind"), ((), "rows")):
                continue
            planted = copy.deepcopy(document)
            del reach(planted, place)[key]
            build(planted)


def reach(document, place):
    for key in place:
        document = document[key]
    return document


def test_two_evaluations_and_two_machines_stay_apart(documents, build):
    acted, timed = (copy.deepcopy(documents[kind]) for kind in ("eval", "bench"))
    acted["name"], timed["hardware"]["cpu"] = "elsewhere", "Another processor"
    page = build(documents["eval"], acted, documents["bench"], timed)
    assert page.seen.count("Up and to the left is better") == 4
    assert "on elsewhere" in page.seen
    assert "on Another processor" in page.seen


# -- what it must not do ---------------------------------------------------------------------------------------------


def test_nothing_is_fetched_run_or_styled_from_inside(whole):
    page = Page(whole)
    assert not page.of("script")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name != "style", f"<{tag}> carries a style"
            assert not name.startswith("on"), f"<{tag}> carries a handler"
            if name in ("src", "href", "action", "data"):
                assert value.startswith(("#", "data:")), f"<{tag}> points at {value[:40]}"
    (style,) = page.words["style"]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")


def test_a_result_cannot_put_markup_on_the_page(home, documents, tmp_path, build):
    shutil.copytree(home / "student", tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().replace("kd/velocity", "<script>")
    (tmp_path / "run" / "metrics.jsonl").write_text(metrics)
    plain = [
        attributes["aria-label"] for attributes in build(*documents.values()).of("svg") if "aria-label" in attributes
    ]
    planted = [result.save(plant(documents[kind]), tmp_path / f"{kind}-evil.json") for kind in KINDS]
    page = Page(report([*planted, tmp_path / "run"], tmp_path / "evil.html", title=EVIL))
    assert not page.of("script")
    assert len(page.words["style"]) == 1
    assert page.words["h1"] == [EVIL]
    assert page.seen.count(EVIL) > 20
    assert len([1 for attributes in page.of("svg") if "aria-label" in attributes]) >= len(plain) - 2


def plant(value):
    """The same document with EVIL behind every text but those that say what it is."""
    if isinstance(value, dict):
        fixed = ("kind", "op", "stack", "device", "against")
        return {key: inner if key in fixed else plant(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plant(inner) for inner in value]
    return value + EVIL if isinstance(value, str) else value


def test_odd_letters_and_numbers_are_written_all_the_same(documents, build):
    documents["eval"]["rows"][1]["policy"] = "π\ud800\u202e" + "w" * 300
    documents["bench"]["rows"][1]["latency_ms"] |= {"p50": 1e-9, "p99": 1e12}
    assert "π" in build(documents["eval"], documents["bench"]).seen


def test_a_page_is_written_whole_or_not_at_all(home, tmp_path):
    out = tmp_path / "deep" / "page.html"
    first = report([home / "eval.json"], out).read_text()
    with pytest.raises(ValueError, match="no place on the page"):
        report([home / "eval.json", planted_kind(tmp_path, "collect")], out)
    assert out.read_text() == first
    assert report([str(home / "eval.json")], str(out), title="lithe report") == out
    assert out.read_text() == first, "the same input must give the same page"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def planted_kind(folder: Path, kind: str) -> Path:
    return result.save(result.make(kind, "x", {}, []), folder / f"{kind}.json")


# -- what it refuses -------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


REFUSED = {
    "nothing": (lambda home, tmp: [], "nothing to report on.*kinds eval, bench, profile, train, explain"),
    "a missing file": (lambda home, tmp: [tmp / "no.json"], "no.json is not a Result.*takes Result files"),
    "a picture": (
        lambda home, tmp: [next((home / "strips").glob("*.png"))],
        "is not a Result but binary.*takes Result files",
    ),
    "another kind": (lambda home, tmp: [planted_kind(tmp, "collect")], "kind 'collect', which has no place"),
    "any folder": (lambda home, tmp: [tmp], "neither recipe.json nor strips.json"),
    "a policy folder": (lambda home, tmp: [home / "teacher"], "neither recipe.json nor strips.json"),
    "a run without steps": (lambda home, tmp: [write(tmp, recipe__json="{}")], "has not logged a step"),
    "a damaged run": (lambda home, tmp: [write(tmp, recipe__json="{")], "is damaged"),
    "rows of numbers": (
        lambda home, tmp: [write(tmp, x__json='{"kind": "eval", "rows": [1]}') / "x.json"],
        "rows are not a list of objects",
    ),
    "damaged strips": (lambda home, tmp: [write(tmp, strips__json='{"strips": [{}]}')], "make the film strips again"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nothing_can_be_made_of_is_refused_in_one_sentence(home, tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        report(make(home, tmp_path), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_is_no_page(home, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: give the page a name in it, such as .*report\.html"):
        report([home / "eval.json"], tmp_path)


def test_the_torn_line_of_a_running_run_is_left_out(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "student", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"task": ', '"task": NaN, "was": ')
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 30, "ta')
    assert "20 of 20" in Page(report([run], tmp_path / "page.html")).seen


# -- film strips -----------------------------------------------------------------------------------------------------


def test_strips_show_the_evaluated_episodes_from_beginning_to_end(home, documents):
    index = json.loads((home / "strips" / "strips.json").read_text())["strips"]
    assert any(strip["success"] for strip in index), "the toy policies are no test"
    assert [(s["policy"], s["task"], s["seed"]) for s in index] == [
        (p, t, 10) for t in TASKS for p in ("teacher", "student")
    ]
    for strip in index:
        steps = [frame["step"] for frame in strip["frames"]]
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (0, strip["steps"])
        assert len(steps) == 6
        assert strip["success"] == (strip["steps"] < FakeSim.horizon)
        assert strip["weights"] == documents["eval"]["settings"]["policies"][strip["policy"]]["weights"]
    sim, frame = FakeSim(), index[0]["frames"][0]
    sim.reset(TASKS[0], 10)
    shown = np.asarray(Image.open(home / "strips" / frame["file"]))
    assert np.array_equal(shown, sim.render("front", 32))


@pytest.mark.parametrize("length", [0, 1, 5, 17, 48, 49, 500])
def test_a_reel_keeps_few_pictures_evenly_spread_to_the_last_step(length):
    taken = []
    reel = Reel(lambda: taken.append(0) or np.full((2, 2, 3), len(taken), np.uint8), 48)
    for step in range(length + 1):
        reel(step, step == length)
    shown = spread(list(reel.pictures), 6)
    assert (shown[0], shown[-1], len(shown)) == (0, length, min(6, length + 1))
    assert len(taken) < 150
    assert len(reel.pictures) <= 49
    gaps = np.diff(shown)
    assert length < 5 or gaps.max() - gaps.min() <= max(2, 0.05 * length)


def test_strips_of_anything_but_the_evaluation_are_refused(home, documents, tmp_path):
    played, folders = documents["eval"], {"teacher": home / "teacher"}
    for settings, message in (
        ({"tasks": ["reach-green"]}, "'reach-green' was not evaluated"),
        ({"seed": 9}, "seed 9 was not evaluated; seeds 10 to 13 were"),
        ({"policies": {"teacher": home / "student" / "student"}}, "other weights than 'teacher'"),
        ({"policies": {"techer": home / "teacher"}}, "'techer' was not evaluated.*teacher"),
        ({"frames": 1}, "at least 2 pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            strips(played, out=tmp_path / "strips", **{"policies": folders, **settings})
    played["settings"]["execution"] = "async"
    with pytest.raises(ValueError, match="leave out --realtime"):
        strips(played, folders, tmp_path / "strips")
    assert not (tmp_path / "strips").exists()


def test_a_lerobot_policy_has_strips_as_one_that_lithe_saved(foreign, tmp_path):
    vision = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
    stats = {"action": {"q01": [-1.0] * 4, "q99": [1.0] * 4}}
    policy = foreign.lerobot(Pi.fresh("pico", vision=vision, cameras=FakeSim.cameras), tmp_path / "theirs", stats)
    played = evaluate([policy], "fake", TASKS[:1], 1, names=["theirs"], processes=1)
    strips(played, {"theirs": policy}, tmp_path / "strips", size=16)
    (strip,) = json.loads((tmp_path / "strips" / "strips.json").read_text())["strips"]
    assert strip["weights"] == sha256(policy / checkpoint.WEIGHTS)
    (policy / checkpoint.WEIGHTS).write_bytes((policy / checkpoint.WEIGHTS).read_bytes()[:-4] + b"1234")
    with pytest.raises(ValueError, match="other weights than 'theirs'"):
        strips(played, {"theirs": policy}, tmp_path / "again", size=16)


def test_strips_of_other_weights_do_not_come_onto_the_page(home, documents, tmp_path):
    shutil.copytree(home / "strips", tmp_path / "strips")
    documents["eval"]["settings"]["policies"]["student"]["weights"] = "0" * 64
    path = result.save(documents["eval"], tmp_path / "eval.json")
    with pytest.raises(ValueError, match="show other weights of 'student' than the evaluation"):
        report([path], tmp_path / "page.html")


@pytest.mark.parametrize("name", ["../secret.png", "strips.json", "absent.png"])
def test_an_index_cannot_bring_in_other_files(home, tmp_path, name):
    shutil.copytree(home / "strips", tmp_path / "strips")
    shutil.copy(next((home / "strips").glob("*.png")), tmp_path / "secret.png")
    index = json.loads((tmp_path / "strips" / "strips.json").read_text())
    index["strips"][0]["frames"][0]["file"] = name
    (tmp_path / "strips" / "strips.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is no PNG file beside it"):
        report([tmp_path / "strips"], tmp_path / "page.html")


def test_png_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


# -- surgery, axes, numbers, colours ---------------------------------------------------------------------------------


def keep(*layers: int, stack: str = "trunk", **by_path) -> dict:
    return {"op": "KeepLayers", "stack": stack, "layers": list(layers), **({"by_path": by_path} if by_path else {})}


def test_layers_are_told_by_their_first_numbers():
    assert kept_layers([]) == {}
    assert kept_layers([keep(0, 3, 5, 9), {"op": "Other"}, keep(1, 3)]) == {"trunk": [3, 9]}
    assert kept_layers([keep(0, 3, 5, 9), keep(1, 3, vlm=[0, 1])]) == {"trunk": [3, 9], "trunk: vlm": [0, 3]}
    assert kept_layers([keep(4, 8, vlm=[0, 1]), keep(1)]) == {"trunk": [8], "trunk: vlm": [1]}
    assert kept_layers([keep(4, 8), keep(1, stack="vision")]) == {"trunk": [4, 8], "vision": [1]}


@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 6)), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_an_axis_holds_its_values_and_has_ticks_inside(values, zero, log):
    scale = Scale.over(values, zero=zero, log=log)
    assert scale.log == (log and min(values) > 0)
    assert all(-1e-9 <= scale(value) <= 1 + 1e-9 for value in values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(-1e-9 <= scale(tick) <= 1 + 1e-9 for tick in ticks)


def test_numbers_say_enough_and_no_more():
    assert [short(v) for v in (0, 1234567, 41.26, 0.0009999, -2.5, 1e-9)] == [
        "0",
        "1,234,567",
        "41.3",
        "0.00100",
        "−2.50",
        "1.00e−09",
    ]
    assert [points(v) for v in (0.0, -0.0001, 0.0001, -0.008, 0.1)] == ["0.0", "0.0", "0.0", "−0.8", "+10.0"]
    assert [signed(v) for v in (0, 2.5, -3)] == ["0", "+2.5", "−3"]


def test_colours_are_told_apart_by_every_eye_in_light_and_in_dark():
    """Contrast with the paper, and CIELAB distance for protanopes, deuteranopes and tritanopes (Machado 2009)."""
    eyes = [
        np.eye(3),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
        np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
    ]
    css = Path(str(import_module("lithe.report.page").__file__)).with_name("page.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for style in (light, dark.split("@media")[0]):
        named = dict(re.findall(r"--(\w+): (#\w{6});", style))
        hues = [linear(named[f"hue{i}"]) for i in range(6)]
        for name in ("ink", "muted", "link", "warn"):
            assert contrast(linear(named[name]), linear(named["paper"])) >= 4.5
        assert all(contrast(hue, linear(named["paper"])) >= 3 for hue in hues)
        for eye in eyes:
            seen = [lab(eye @ hue) for hue in hues]
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 12
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen[:4], 2)) > 20


def linear(colour: str) -> np.ndarray:
    share = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    low, high = sorted(float(colour @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(colour: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(colour, 0, 1) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# -- in a browser ----------------------------------------------------------------------------------------------------

WINDOWS = {"wide": (1280, "light"), "narrow": (390, "light"), "dark": (390, "dark"), "crowded": (390, "light")}


def test_a_browser_draws_it_wide_narrow_and_dark(whole, documents, build, browser):
    for kind in ("eval", "bench"):  # long names on top of each other
        rows = documents[kind]["rows"]
        rows += [{**copy.deepcopy(row), "policy": f"{'long-' * 9}{row['policy']}"} for row in rows]
    texts = dict.fromkeys(WINDOWS, whole.read_text()) | {"crowded": build(documents["eval"], documents["bench"]).text}
    found, picture = browser({name: (text, *WINDOWS[name]) for name, text in texts.items()})
    assert found["wide"]["height"] < found["narrow"]["height"]
    assert (found["narrow"]["paper"], found["dark"]["paper"]) == ("rgb(253, 253, 252)", "rgb(20, 22, 25)")
    for left, width in ((0, 1280), (1280, 390), (1670, 390)):
        window = np.asarray(picture.crop((left, 0, left + width, 1000))).reshape(-1, 3)
        colours, counts = np.unique(window, axis=0, return_counts=True)
        assert len(colours) > 50, f"{len(colours)} colours: the window is blank"
        assert 0.03 < 1 - counts.max() / len(window) < 0.6
