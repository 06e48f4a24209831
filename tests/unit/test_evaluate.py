"""Closed-loop evaluation: paired, reproducible to the bit, and complete whatever is killed in between."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lithe import api, checkpoint, result
from lithe._disk import sha256
from lithe.evaluate import entrants, evaluate, table
from lithe.evaluate.ledger import Ledger, key
from lithe.evaluate.outcome import rows
from lithe.evaluate.rollout import Job, Player, Setup, filmstrip, jerk, noise_seed
from lithe.families.pi import Pi
from lithe.sims.fake import FakeSim

TASKS, EPISODES, NAMES = ("reach-red", "reach-blue"), 4, ("teacher", "student")
STILL = {"reach-red": "Stay where you are"}


def make_policy(folder: Path, seed: int, drift: float, cameras=FakeSim.cameras, texts=(), **settings) -> Path:
    """Random weights that drift towards a corner and a little down, so that some episodes succeed."""
    model = Pi.fresh("pico", seed=seed, cameras=cameras, **settings)
    unit, middle = {"q01": [-1.0] * 4, "q99": [1.0] * 4}, np.array([drift, drift, -0.25, 0.0])
    sentences = [FakeSim.instruction(task) for task in FakeSim.tasks()] + [*STILL.values(), *texts]
    stats = {"observation.state": unit, "action": {"q01": middle - 0.5, "q99": middle + 0.5}}
    model.fit_to(stats, sentences, cameras)
    return checkpoint.save(model, folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("policies")
    return [make_policy(home / name, seed, drift) for seed, (name, drift) in enumerate(zip(NAMES, (0.3, -0.3)))]


def setup_for(folders, **settings) -> Setup:
    return Setup({folder.name: str(folder) for folder in folders}, "fake", FakeSim.horizon, **settings)


def all_jobs():
    return [Job(name, task, seed) for name in NAMES for task in TASKS for seed in range(EPISODES)]


@pytest.fixture(scope="module")
def expected(folders):
    """Every record, played one after the other in this process."""
    player = Player(setup_for(folders))
    records = {job[:3]: player(*job) for job in all_jobs()}
    assert len({r["actions"] for r in records.values()}) == len(records)
    assert 0 < sum(r["success"] for r in records.values()) < len(records), "the toy policies are no test"
    return records


def without_fingerprint(path):
    """What a ledger holds, after checking that it is sound."""
    terms = json.loads(path.read_text().splitlines()[0])["terms"]
    with Ledger(path, terms) as ledger:
        return {k: {f: v for f, v in r.items() if f != "fingerprint"} for k, r in ledger.records.items()}


# -- one episode -------------------------------------------------------------------------------------------------------


def test_an_episode_does_not_depend_on_what_was_played_before(folders, expected):
    player = Player(setup_for(folders))
    for job in all_jobs()[::-3]:
        assert player(*job) == expected[job[:3]]


def test_every_policy_starts_from_the_same_state_and_noise_and_every_episode_from_another(expected):
    starts = {(k[1:], r["start"]) for k, r in expected.items()}
    assert len(starts) == len(TASKS) * EPISODES
    assert len({r["start"] for r in expected.values()}) == EPISODES, "the toy's scene depends on the seed alone"
    assert len({noise_seed(task, seed) for task in TASKS for seed in range(1000)}) == 2000
    assert noise_seed("reach-red", 0) == 6289241933410274579, "old ledgers must stay reproducible"


class Probe:
    """A policy that answers what it is told and writes down what it saw."""

    routed = False

    def __init__(self, answer, replan=3):
        self.answer, self.spec = answer, SimpleNamespace(replan=replan)
        self.seen, self.seeds = [], []

    def reset(self, seed):
        self.seeds.append(seed)

    def infer(self, observation):
        self.seen.append(observation)
        return self.answer(observation)


class CountingSim(FakeSim):
    """Counts what it is asked for."""

    def __init__(self):
        super().__init__()
        self.actions, self.looks = [], 0

    def step(self, action_A):
        self.actions.append(action_A)
        return super().step(action_A)

    def observe(self):
        self.looks += 1
        return super().observe()


def probe(answer, task="reach-red", seed=0, **settings):
    """Plays one episode with a Probe; returns it, the sim and the record."""
    player = Player(Setup({}, "fake", settings.pop("horizon", 40), **settings))
    player.sim, player.policies["probe"] = CountingSim(), Probe(answer)
    record = player("probe", task, seed)
    return player.policies["probe"], player.sim, record


def test_a_policy_knows_how_many_actions_are_executed(folders):
    """What it remembers of an episode must be what the robot did."""
    named = {path.name: str(path) for path in folders}
    for replan, wanted in ((None, None), (1, 1)):
        player = Player(Setup(named, "fake", 40, replan=replan))
        assert all(policy.replan == (wanted or policy.spec.replan) for policy in player.policies.values())


def test_a_chunk_is_asked_for_only_when_the_last_one_is_used_up():
    chunk = np.arange(20, dtype=np.float32).reshape(5, 4) / 100
    policy, sim, record = probe(lambda seen: chunk, horizon=11)
    assert np.array_equal(sim.actions, chunk[[0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]])
    assert (record["inferences"], record["steps"], record["success"]) == (4, 11, False)
    assert sim.looks == 1 + 4, "one look for the digest, one for each chunk"
    assert policy.seeds == [noise_seed("reach-red", 0)]
    hands = [seen["observation.state"].tolist() for seen in policy.seen]
    assert len({tuple(hand) for hand in hands}) == 4, "it looks at the present, not at the first state"
    assert len(probe(lambda seen: chunk, horizon=11, replan=5)[0].seen) == 3


def test_it_ends_at_success_though_the_chunk_goes_on():
    alone = FakeSim()
    alone.reset("reach-green", 5)
    way = alone._blocks["reach-green"] - alone.observe()["observation.state"][:3]
    chunk = np.tile(np.append(2 * way, 0.0), (30, 1)).astype(np.float32)
    steps = next(n for n in range(1, 31) if alone.step(chunk[0]))
    _, sim, record = probe(lambda seen: chunk, "reach-green", 5, replan=30)
    assert (record["success"], record["inferences"]) == (True, 1)
    assert record["steps"] == len(sim.actions) == steps < 30


def test_actions_are_clipped_before_they_are_executed_and_judged():
    _, sim, record = probe(lambda seen: np.array([[9.0, -9.0, 0.5, 0.0]] * 3, np.float32), horizon=6)
    assert np.array_equal(sim.actions, [[1.0, -1.0, 0.5, 0.0]] * 6)
    assert record["jerk"] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_action_is_an_error_that_names_the_episode(bad):
    chunk = np.zeros((8, 4), np.float32)
    chunk[7, 3] = bad  # beyond what would be executed: the policy is sick all the same
    with pytest.raises(ValueError, match=r"^probe on reach-blue, seed 3: .*non-finite"):
        probe(lambda seen: chunk, "reach-blue", 3)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (12,)])
def test_a_chunk_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"probe on reach-red, seed 0: .*at least 3 actions of 4 numbers"):
        probe(lambda seen: np.zeros(shape, np.float32))


def test_instructions_replace_the_sentence_of_their_task_only():
    zeros = np.zeros((3, 4), np.float32)
    said = {task: probe(lambda seen: zeros, task, instructions=STILL, horizon=4)[0].seen for task in TASKS}
    assert {seen["task"] for seen in said["reach-red"]} == {"Stay where you are"}
    assert {seen["task"] for seen in said["reach-blue"]} == {"Touch the blue block"}


def test_jerk_is_the_mean_length_of_the_third_difference():
    times = np.arange(10.0)
    assert jerk(np.stack([times**3, 0 * times], 1)) == pytest.approx(6.0)
    assert jerk(np.stack([times**3, times**3], 1)) == pytest.approx(6.0 * 2**0.5)
    assert jerk(np.stack([times**2, times], 1)) == pytest.approx(0.0)
    assert jerk(np.array([[1.0], [-1.0]] * 3)) == pytest.approx(8.0)
    assert jerk(np.zeros((3, 4))) is None


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_filmstrip_shows_the_evaluated_episode(folders, expected):
    record = expected["teacher", "reach-red", 1]
    frames = filmstrip(folders[0], "reach-red", 1, sim="fake", every=4, size=48)
    assert len(frames) == 1 + -(-record["steps"] // 4)
    assert all(frame.shape == (48, 48, 3) and frame.dtype == np.uint8 for frame in frames)
    sim = FakeSim()
    sim.reset("reach-red", 1)
    assert np.array_equal(frames[0], sim.render("front", 48))
    again = filmstrip(folders[0], "reach-red", 1, sim="fake", every=1, size=48)
    assert len(again) == record["steps"] + 1
    assert np.array_equal(again[4], frames[1])
    assert np.array_equal(again[-1], frames[-1])
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="has no camera 'top'"):
        filmstrip(folders[0], "reach-red", sim="fake", camera="top")


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_broken_off_evaluation_ends_with_the_records_of_an_undisturbed_one(folders, expected, tmp_path, monkeypatch):
    """Two processes, half a ledger with a torn last line to go on from, and a worker killed on the way."""
    path, call = tmp_path / "ledger.jsonl", {"sim": "fake", "tasks": TASKS, "episodes": EPISODES, "out": tmp_path}
    begin(path, folders, [expected[job[:3]] for job in all_jobs()[::3]])
    before = path.read_bytes()
    path.write_bytes(before + b'{"policy": "teacher", "task": "rea')
    killed = []

    def kill_one(ledger, record):
        append(ledger, record)
        if len(ledger.records) == 8:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    append = Ledger.append
    monkeypatch.setattr(Ledger, "append", kill_one)
    document = evaluate(folders, **call, processes=2, videos=1)
    assert killed
    assert path.read_bytes().startswith(before), "the ledger is only appended to"
    assert without_fingerprint(path) == expected
    assert document["rows"] == rows(expected, TASKS, range(EPISODES), NAMES, "teacher")
    student = document["rows"][1]
    assert student["paired"]["n"] == student["paired"]["same_start"] == len(TASKS) * EPISODES
    assert document["settings"]["policies"]["student"]["replan"] == 2
    json.dumps(document, allow_nan=False)
    check_videos(tmp_path / "videos", expected)


def begin(path, folders, records):
    """A ledger with these records in it, as an evaluation of the toy that was killed leaves it."""
    cls, terms = FakeSim, {"sim": "fake", "sim_options": {}, "horizon": 40, "steps": None, "replan": None}
    terms |= {"runtime": "eager", "instructions": {}, "versions": result.versions()}
    judged = {folder.name: entrants.entrant(folder.name, folder, cls, terms) for folder in folders}
    with Ledger(path, terms) as ledger:
        for record in records:
            ledger.append({"fingerprint": judged[record["policy"]]["fingerprint"], **record})


def check_videos(folder, expected):
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.mp4*"))
    assert found == sorted(f"{name}/{task}-0.mp4" for name in NAMES for task in TASKS)
    av = pytest.importorskip("av")
    with av.open(str(folder / "student/reach-blue-0.mp4")) as file:
        frames = list(file.decode(video=0))
    steps = expected["student", "reach-blue", 0]["steps"]
    assert len(frames) == 1 + steps, "a toy at 10 Hz is filmed step by step"
    assert float(frames[-1].time) == pytest.approx(steps / 10)


CANNED = '''
"""A player without policy and simulator."""
import hashlib
from pathlib import Path

def opener(setup):
    def play(policy, task, seed, video=False):
        with (Path(setup.videos).parent / "played").open("a") as file:
            file.write("x")
        if video:
            path = Path(setup.videos) / policy / f"{task}-{seed}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        digest = hashlib.sha256(f"{policy}{task}{seed}".encode()).digest()
        return {"policy": policy, "task": task, "seed": seed, "success": digest[0] > 99, "steps": digest[1],
                "jerk": None, "inferences": 1, "start": "s", "actions": digest.hex()[:16]}
    return play
'''


@pytest.fixture
def canned(tmp_path, monkeypatch):
    """Evaluates with records out of the hat, for tests of what happens around episodes."""
    (tmp_path / "canned_player.py").write_text(CANNED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("lithe.evaluate")  # not `lithe.evaluate`, which may be the function
    monkeypatch.setattr(module, "Player", importlib.import_module("canned_player").opener)
    yield lambda folders, **settings: evaluate(folders, **{"sim": "fake", "tasks": TASKS, "processes": 1, **settings})
    sys.modules.pop("canned_player")


CALLER = """
import importlib, json, sys
import canned_player
if __name__ == "__main__":
    module = importlib.import_module("lithe.evaluate")
    module.Player = canned_player.opener
    module.evaluate(**json.loads(sys.argv[1]))
"""


def test_a_killed_evaluation_goes_on_where_it_was(folders, canned, tmp_path):
    """Kill -9 of the whole evaluation, again and again: every episode is there once in the end."""
    (tmp_path / "caller.py").write_text(CALLER)
    path, call = (
        tmp_path / "out/ledger.jsonl",
        {"sim": "fake", "tasks": TASKS, "episodes": 200, "out": str(tmp_path / "out")},
    )
    command = [sys.executable, str(tmp_path / "caller.py"), json.dumps({"policies": [str(f) for f in folders], **call})]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(command, env=env) as process:
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 5):
            time.sleep(0.005)
        process.kill()
    before = path.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert 5 < whole.count(b"\n") < 2 * 2 * 200, "it was not killed on the way"
    document = canned(folders, **call)
    assert path.read_bytes().startswith(whole)
    assert len(without_fingerprint(path)) == 2 * 2 * 200
    assert document["rows"] == canned(folders, episodes=200)["rows"]


def test_more_episodes_tasks_and_policies_can_be_added(folders, canned, tmp_path):
    out = tmp_path / "out"
    canned(folders[:1], episodes=2, out=out)
    first = (out / "ledger.jsonl").read_bytes()
    whole = canned(folders, episodes=3, tasks=FakeSim.tasks(), out=out)
    assert (out / "ledger.jsonl").read_bytes().startswith(first)
    assert len(without_fingerprint(out / "ledger.jsonl")) == 2 * 3 * 3
    assert (out / "played").stat().st_size == 2 * 3 * 3, "nothing is played twice"
    assert whole["rows"] == canned(folders, episodes=3, tasks=FakeSim.tasks(), processes=2)["rows"]
    part = canned(folders[1:], episodes=1, out=out, processes=None)
    assert part["rows"][0]["success"]["n"] == 2


def test_the_table_shows_every_policy_and_task(folders, canned):
    document = canned(folders, episodes=9, names=["big", "small"], against="small")
    console = Console(width=80, record=True, file=StringIO())
    console.print(table(document))
    text = console.export_text()
    assert all(word in text for word in ("big", "small", *TASKS, "minus small", "seeds 0 to 8"))
    figure = document["rows"][0]["paired"]
    assert "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * figure[k] for k in ("difference", "low", "high"))) in text


def test_policies_take_turns(folders, canned, tmp_path):
    canned(folders, episodes=3, out=tmp_path / "out")
    played = [k[0] for k in without_fingerprint(tmp_path / "out/ledger.jsonl")]
    pairs = list(itertools.batched(played, 2))
    assert all(set(pair) == set(NAMES) for pair in pairs)
    assert pairs[0] == pairs[2] == pairs[1][::-1]


def test_an_episode_played_again_for_its_video_must_come_out_the_same(folders, canned, tmp_path):
    canned(folders, episodes=2, out=tmp_path / "out")
    canned(folders, episodes=2, out=tmp_path / "out", videos=1)
    path = tmp_path / "out/ledger.jsonl"
    assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) == 4
    terms, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    with Ledger(path, terms["terms"]) as ledger:
        for line in lines:
            line.pop("crc")
            ledger.append({**line, "actions": "other"} if key(line) == ("student", "reach-red", 1) else line)
    with pytest.raises(ValueError, match="student on reach-red, seed 1: played again it went differently"):
        canned(folders, episodes=2, out=tmp_path / "out", videos=2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 2}, "begun with steps=None"),
        ({"replan": 1}, "begun with replan=None"),
        ({"horizon": 30}, "begun with horizon=40"),
        ({"instructions": STILL}, "begun with instructions="),
        ({"sim_options": {"size": 16}}, "begun with sim_options="),
    ],
    ids=str,
)
def test_a_ledger_of_other_settings_is_refused(folders, canned, tmp_path, change, sentence):
    canned(folders, episodes=1, out=tmp_path / "out")
    with pytest.raises(ValueError, match=f"{sentence}.*choose another folder"):
        canned(folders, episodes=1, out=tmp_path / "out", **change)


def test_another_policy_of_the_same_name_is_refused(folders, canned, tmp_path):
    canned(folders, episodes=1, out=tmp_path / "out")
    other = make_policy(tmp_path / "student", 9, 0.0)
    with pytest.raises(ValueError, match=r"another policy called 'student'.*name=folder"):
        canned([folders[0], other], episodes=1, out=tmp_path / "out")
    assert canned([folders[0], f"second={other}"], episodes=1, out=tmp_path / "out")["rows"][1]["policy"] == "second"


def test_a_fingerprint_stands_for_weights_preprocessing_and_settings(folders, canned, tmp_path):
    def fingerprint(folder, **settings):
        return canned([folder], names=["x"], episodes=1, **settings)["settings"]["policies"]["x"]["fingerprint"]

    first = fingerprint(folders[0])
    copy = make_policy(tmp_path / "copy", 0, 0.3)
    assert fingerprint(copy) == first
    assert fingerprint(copy, seed=5) == first
    (copy / "eval.json").write_text("{}")  # laid beside it later
    assert fingerprint(copy) == first
    others = [fingerprint(folders[1]), fingerprint(copy, replan=1), fingerprint(make_policy(tmp_path / "n", 0, 0.31))]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"episodes": 0}, "episodes=0 plays nothing"),
        ({"seed": 9_999, "episodes": 2}, "kept for evaluation"),
        ({"seed": -1}, "kept for evaluation"),
        ({"tasks": ["reach-rad"]}, "no task 'reach-rad'; did you mean 'reach-red'"),
        ({"tasks": []}, "named once each, got none"),
        ({"tasks": ["reach-red", "reach-red"]}, "named once each"),
        ({"sim": "fakes"}, "no 'fakes' among lithe's sims; did you mean 'fake'"),
        ({"runtime": "egar"}, "no 'egar' among lithe's runtimes; did you mean 'eager'"),
        ({"horizon": 0}, "horizon=0 must be positive"),
        ({"steps": 0}, "steps=0 must be positive"),
        ({"replan": 9}, "replan=9 is more than the 4 actions"),
        ({"processes": 0}, "processes=0 must be positive"),
        ({"timeout": -1.0}, "timeout=-1.0 must be positive"),
        ({"against": "techer"}, "'techer' is not among the policies; did you mean 'teacher'"),
        ({"names": ["one"]}, "2 policies with 1 names"),
        ({"names": ["one", "one"]}, "two policies are called 'one'"),
        ({"names": ["one", "../two"]}, "cannot name a policy"),
        ({"instructions": {"reach-green": "x"}}, "'reach-green', which is not evaluated"),
        ({"videos": 1, "episodes": 1}, "videos need a folder"),
        ({"videos": 2, "episodes": 1}, "between 0 and episodes=1"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_in_a_sentence(folders, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(folders, **{"sim": "fake", "tasks": TASKS, **settings})


def test_a_policy_that_does_not_fit_is_refused(folders, tmp_path):
    elsewhere = make_policy(tmp_path / "elsewhere", 0, 0.0, cameras=("corner2", "gripperPOV"))
    with pytest.raises(ValueError, match="'elsewhere' looks through camera 'corner2'; fake has front, wrist"):
        evaluate([elsewhere], "fake")
    with pytest.raises(ValueError, match="is not a lithe policy folder"):
        evaluate([tmp_path / "nowhere"], "fake")
    with pytest.raises(ValueError, match="0 policies"):
        evaluate([], "fake")
    (elsewhere / "normalization.json").unlink()
    with pytest.raises(ValueError, match=r"normalization.json is missing"):
        evaluate([elsewhere], "fake")


def lerobot_policy(foreign, folder) -> Path:
    """As `make_policy` makes them, in LeRobot's format."""
    vision = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
    model = Pi.fresh("pico", vision=vision, cameras=FakeSim.cameras)
    middle = np.array([0.3, 0.3, -0.25, 0.0])
    stats = {"action": {"q01": (middle - 0.5).tolist(), "q99": (middle + 0.5).tolist()}}
    return foreign.lerobot(model, folder, stats)


def test_a_lerobot_policy_plays_the_episodes_of_the_same_policy_saved_by_lithe(foreign, tmp_path):
    folder = lerobot_policy(foreign, tmp_path / "theirs")
    own = checkpoint.save(api.load(folder), tmp_path / "ours")
    document = evaluate([folder, own], "fake", ["reach-red"], episodes=3, processes=1, out=tmp_path / "out")
    records = without_fingerprint(tmp_path / "out/ledger.jsonl")
    for seed in range(3):
        theirs, ours = (records[name, "reach-red", seed] for name in ("theirs", "ours"))
        assert {**theirs, "policy": ""} == {**ours, "policy": ""}
    theirs, ours = document["settings"]["policies"].values()
    assert theirs["weights"] == sha256(folder / checkpoint.WEIGHTS) and theirs["fingerprint"] != ours["fingerprint"]
    shared = ("family", "history", "chunk", "replan", "steps")
    assert {key: theirs[key] for key in shared} == {key: ours[key] for key in shared}


def test_a_hub_id_takes_part_under_its_own_name(foreign, canned, tmp_path, monkeypatch):
    folder = lerobot_policy(foreign, tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder))
    document = canned(["lab/policy", f"here={folder}"], episodes=1)
    assert [row["policy"] for row in document["rows"]] == ["policy", "here"]
    assert document["settings"]["policies"]["policy"] == document["settings"]["policies"]["here"]


def test_the_fingerprint_of_a_foreign_policy_covers_all_it_acts_by(foreign, tmp_path):
    terms: dict = {"replan": None, "steps": None}
    folder, elsewhere = lerobot_policy(foreign, tmp_path / "policy"), tmp_path / "words"
    elsewhere.mkdir()

    def fingerprint(place=folder) -> str:
        return entrants.entrant("x", place, FakeSim, terms)["fingerprint"]

    def edit_json(name, change) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    def edit_tensors(name, key) -> None:
        tensors = {k: x.clone() for k, x in load_file(folder / name).items()}
        tensors[key].view(-1)[0] += 0.5
        (folder / name).unlink()
        save_file(tensors, folder / name)

    def move_words() -> None:
        (folder / "tokenizer.json").rename(elsewhere / "tokenizer.json")
        words = {"tokenizer_name": str(elsewhere)}
        edit_json("policy_preprocessor.json", lambda data: data["steps"][2]["config"].update(words))

    def edit_words() -> None:
        made = Tokenizer.from_file(str(elsewhere / "tokenizer.json"))
        made.add_tokens(["touch"])
        made.save(str(elsewhere / "tokenizer.json"))

    first = fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    found = [first]
    for change in (
        lambda: edit_tensors("model.safetensors", "model.action_in_proj.bias"),
        lambda: edit_json("config.json", lambda data: data.update(chunk_size=3)),
        lambda: edit_tensors("before.safetensors", "observation.state.q01"),
        lambda: edit_json("policy_preprocessor.json", lambda data: data["steps"][2]["config"].update(extra=1)),
        move_words,
        edit_words,
    ):
        change()
        found.append(fingerprint())
    assert len(set(found)) == 7
    assert fingerprint(tmp_path / "copy") == first


def test_the_fingerprint_of_a_policy_of_lithe_is_what_it_always_was(folders):
    """Ledgers that were begun before must go on."""
    terms: dict = {"replan": None, "steps": None}
    card = json.loads((folders[0] / checkpoint.CARD).read_text())
    policy = {key: card[key] for key in ("family", "config", "history", "sha256")}
    beside = {name: sha256(folders[0] / name) for name in ("normalization.json", "tokenizer.json")}
    identity = json.dumps([policy, beside, terms], sort_keys=True)
    found = entrants.entrant("x", folders[0], FakeSim, terms)
    assert found["fingerprint"] == hashlib.sha256(identity.encode()).hexdigest() and found["steps"] == 3


def test_rows_pair_episodes_and_leave_out_what_was_not_measured():
    def record(policy, seed, success, steps, jerk=0.5, start="s"):
        return {
            "policy": policy,
            "task": "t",
            "seed": seed,
            "success": success,
            "steps": steps,
            "jerk": jerk,
            "start": start,
        }

    teacher = [record("teacher", 0, True, 10), record("teacher", 1, True, 12), record("teacher", 2, False, 40)]
    student = [
        record("student", 2, True, 9),
        record("student", 1, True, 15, None, "u"),
        record("student", 0, False, 40),
    ]
    records = {key(r): r for r in [*teacher, *student, record("other", 0, True, 1), record("student", 3, True, 1)]}
    first, second = rows(records, ["t"], range(3), ["teacher", "student"], "teacher")
    assert "paired" not in first
    assert first["success"]["rate"] == second["success"]["rate"] == pytest.approx(2 / 3)
    assert second["paired"]["difference"] == 0
    assert second["paired"]["n"] == 3
    assert second["paired"]["same_start"] == 2
    assert second["paired"]["steps"] == {"median": 3.0, "mean": 3.0, "n": 1}, "only seed 1 was solved by both"
    assert second["steps_to_success"] == {"median": 12.0, "mean": 12.0, "n": 2}
    assert second["jerk"]["n"] == 2
    assert second["tasks"]["t"] == {k: v for k, v in second.items() if k not in ("policy", "tasks")}
    failed = {key(r): r for r in [record("teacher", 0, False, 2, None)]}
    assert rows(failed, ["t"], [0], ["teacher"], "teacher")[0].keys() == {"policy", "success", "tasks"}


def test_metaworld_episodes_are_reproducible(tmp_path):
    pytest.importorskip("metaworld")
    from lithe.sims.metaworld import MetaWorld

    tasks = ("drawer-close-v3", "reach-v3")
    sentences = [MetaWorld.instruction(task) for task in tasks]
    folder = make_policy(tmp_path / "policy", 0, 0.0, MetaWorld.cameras, sentences)
    player = Player(Setup({"policy": str(folder)}, "metaworld", 6))
    first = player("policy", tasks[0], 1)
    others = [player("policy", tasks[1], 1), player("policy", tasks[0], 2)]
    assert first["steps"] == 6
    assert player("policy", tasks[0], 1) == first
    assert len({r["start"] for r in [first, *others]}) == 3
    player.sim.close()
