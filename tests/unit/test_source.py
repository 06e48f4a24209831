"""Foreign checkpoints as they arrive: where they come from, what is refused and why. Needs no LeRobot.

The LeRobot folder is written by hand from a small pi, so that each test can spoil one thing in it; that LeRobot itself
writes the same folder is checked in tests/parity.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import lithe
from lithe import api, source, surgery
from lithe.data.fake import FakeData
from lithe.distill import distill
from lithe.families import _lerobot, _pi_names
from lithe.families.pi import Pi, PiConfig
from lithe.methods.finetune import Finetune

STATE, ACTION = 3, 2
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
FEATURES = {
    "observation.images.top": {"type": "VISUAL", "shape": [3, 16, 16]},
    "observation.state": {"type": "STATE", "shape": [STATE]},
}
OUTPUT = {"action": {"type": "ACTION", "shape": [ACTION]}}
MODES = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}


def make_tokenizer() -> Tokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


@pytest.fixture(scope="module")
def model() -> Pi:
    vision = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
    return Pi.fresh("pico", vision=vision, cameras=["top"], action_dim=ACTION, state_dim=STATE)


@pytest.fixture
def policy(model, tmp_path) -> Path:
    """A LeRobot pi0.5 folder that loads."""
    folder = tmp_path / "policy"
    folder.mkdir()
    config = {
        "type": "pi05",
        "n_obs_steps": 1,
        "input_features": FEATURES,
        "output_features": OUTPUT,
        "use_peft": False,
        "chunk_size": 4,
        "n_action_steps": 2,
        "max_state_dim": 4,
        "max_action_dim": 4,
        "num_inference_steps": 3,
        "image_resolution": [16, 16],
        "empty_cameras": 0,
        "tokenizer_max_length": 48,
        "min_period": 0.004,
        "max_period": 4.0,
        "use_relative_actions": False,
    }
    normalise = {"eps": 1e-8, "features": {**FEATURES, **OUTPUT}, "norm_map": MODES}
    tokenizer = {"max_length": 48, "task_key": "task", "padding_side": "right", "padding": "max_length"}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "relative_actions_processor", "config": {"enabled": False}},
        {"registry_name": "normalizer_processor", "config": normalise, "state_file": "stats_before.safetensors"},
        {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {**tokenizer, "tokenizer_name": "lab/words"}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    after = [
        {
            "registry_name": "unnormalizer_processor",
            "config": {**normalise, "features": OUTPUT},
            "state_file": "stats_after.safetensors",
        },
        {"registry_name": "absolute_actions_processor", "config": {"enabled": False}},
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
    ]
    sizes = {"observation.state": STATE, "action": ACTION}
    stats = {f"{f}.{k}": torch.arange(n) + 10.0 * (k == "q99") for f, n in sizes.items() for k in ("q01", "q99")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / BEFORE).write_text(json.dumps({"name": "policy_preprocessor", "steps": before}))
    (folder / AFTER).write_text(json.dumps({"name": "policy_postprocessor", "steps": after}))
    for name in ("stats_before", "stats_after"):
        save_file(stats, folder / f"{name}.safetensors")
    save_file({"model." + _pi_names.stored(k, "pi05"): x for k, x in model.state_dict().items()}, weights(folder))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(path: Path, change) -> None:
    tensors = {key: x.clone() for key, x in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def step(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in data["steps"] if s["registry_name"].startswith(name))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        lithe.load(folder)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def observe() -> dict[str, Any]:
    image = np.full((16, 16, 3), 7, np.uint8)
    return {"observation.images.top": image, "observation.state": np.zeros(STATE), "task": "push"}


# -- where it comes from ---------------------------------------------------------------------------------------------


def test_a_sound_folder_loads(policy, model):
    loaded = lithe.load(policy)
    assert isinstance(loaded, Pi) and not loaded.training
    assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in model.state_dict().items())
    noise = loaded.noise(1, torch.Generator().manual_seed(0))
    assert torch.isfinite(
        loaded.actions(loaded.act(loaded.observe([observe()]), noise), loaded.observe([observe()]))
    ).all()
    assert loaded.spec == lithe.load(str(policy)).spec and loaded.spec.cameras == ("top",)


def test_a_hub_id_is_downloaded_at_a_revision_and_its_commit_is_kept(policy, tmp_path, monkeypatch):
    """As the hub's cache has it: a snapshot of links into the blobs of the same repository."""
    home = tmp_path / "models--lab--policy"
    snapshot, blobs = home / "snapshots" / COMMIT, home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(policy.iterdir())):
        (blobs / str(i)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(snapshot))
    loaded: Any = lithe.load("lab/policy", revision="v1")
    assert loaded.origin == {"source": "lab/policy", "revision": COMMIT}
    (name,), settings = asked[0]
    assert name == "lab/policy" and settings["revision"] == "v1"
    patterns = {key: settings[key] for key in ("allow_patterns", "ignore_patterns")}
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "assets/lab/robot/norm_stats.json", "student.json"]
    never = [
        "pytorch_model.bin",
        "metadata.pt",
        "x.pkl",
        "modeling.py",
        "a.pth",
        "optimizer.safetensors",
        "training_state/rng_state.safetensors",
        "checkpoints/000100/model.safetensors",
    ]
    assert list(filter_repo_objects(wanted + never, **patterns)) == wanted


def test_where_a_teacher_came_from_stays_with_its_students(policy, tmp_path, monkeypatch):
    """Loaded, distilled, saved, loaded again and cut once more: the origin is the published checkpoint."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(policy))
    origin = {"source": "lab/policy", "revision": "v1"}
    data = FakeData(cameras=("top",), size=16, state_dim=STATE, action_dim=ACTION)
    train = lithe.Train(steps=1, batch=2, warmup=0, precision="fp32")
    student = distill(lithe.load("lab/policy", "v1"), Finetune(keep=3), data, train, tmp_path / "run")
    lithe.save(student, tmp_path / "saved")
    for folder in (tmp_path / "run/student", tmp_path / "saved"):
        assert json.loads((folder / "student.json").read_text())["origin"] == origin
    again: Any = lithe.load(tmp_path / "saved")
    assert again.origin == origin and api.skeleton(tmp_path / "saved").origin == origin
    lithe.save(surgery.cut(again, Finetune(keep=2).cut(again)), tmp_path / "smaller")
    assert json.loads((tmp_path / "smaller/student.json").read_text())["origin"] == origin
    fresh: Any = lithe.load("pi:pico")
    fresh.fit_to(data.stats, data.tasks, fresh.spec.cameras)
    lithe.save(fresh, tmp_path / "fresh")
    assert "origin" not in json.loads((tmp_path / "fresh/student.json").read_text())
    own: Any = lithe.load(tmp_path / "fresh")
    assert own.origin == {"source": str(tmp_path / "fresh"), "revision": None}


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    def fail(*args, **settings):
        raise LocalEntryNotFoundError("cannot reach it\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match=r"no folder lab/policy here, .*\(cannot reach it\).*name a local folder"):
        lithe.load("lab/policy")


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "a/b/c", "../x/y", "-x/y"])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match="there is no folder"):
        lithe.load(name)


def test_local_sources_that_are_not_policy_folders(policy, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "student.json", "config.json", "norm_stats.json")
    refused(policy / "config.json", "is a file")
    with pytest.raises(ValueError, match="no revisions"):
        lithe.load(policy, revision="main")


def test_links_may_not_lead_out_of_the_folder(policy, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (policy / "inside.json").symlink_to("config.json")
    lithe.load(policy)
    (policy / "extra.json").symlink_to(secret)
    refused(policy, "extra.json", "link out of its folder")


def test_a_snapshot_may_not_link_into_another_repository(policy, tmp_path):
    snapshot, other = tmp_path / "a" / "snapshots" / COMMIT, tmp_path / "b" / "blobs"
    for folder in (snapshot, other):
        folder.mkdir(parents=True)
    (other / "1").write_text("{}")
    (snapshot / "config.json").symlink_to(other / "1")
    refused(snapshot, "link out of its folder")


# -- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4, 100, -1, -1000])
def test_truncated_weights(policy, size):
    content = weights(policy).read_bytes()
    weights(policy).write_bytes(content[:size])
    refused(policy, "model.safetensors", "damaged", "fetch it again")


def test_a_flipped_bit_in_the_header(policy):
    content = bytearray(weights(policy).read_bytes())
    for place in (2, 9, content.index(b"data_offsets") + 16):
        spoilt = bytearray(content)
        spoilt[place] ^= 0x11
        weights(policy).write_bytes(spoilt)
        refused(policy)


KEY = "model.action_in_proj.weight"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(policy, bad):
    edit_tensors(weights(policy), lambda tensors: tensors[KEY].view(-1)[3:4].fill_(bad))
    refused(policy, KEY, "finite")


def test_weights_that_are_not_floats(policy):
    edit_tensors(weights(policy), lambda tensors: tensors.update({KEY: tensors[KEY].to(torch.int8)}))
    refused(policy, KEY, "finite")


def test_tensors_that_are_missing_unknown_or_misshaped(policy):
    sound = weights(policy).read_bytes()
    for change, words in (
        (lambda t: t.pop("model.action_in_proj.bias"), ("missing", "action_in.bias")),
        (lambda t: t.pop(KEY), ("action_in_proj.weight",)),
        (lambda t: t.update({"model.spare.weight": torch.zeros(2)}), ("does not know", "model.spare.weight")),
        (lambda t: t.update({"model.time_mlp_in.bias": torch.zeros(2)}), ("misshaped", "time_in.bias")),
        (lambda t: t.update({KEY.removeprefix("model."): t.pop(KEY)}), ("does not know", "action_in_proj.weight")),
    ):
        weights(policy).write_bytes(sound)
        edit_tensors(weights(policy), change)
        refused(policy, *words)


def test_only_listed_tensors_are_known_to_be_unused(policy):
    lm_head = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
    edit_tensors(weights(policy), lambda tensors: tensors.update({lm_head: torch.zeros(2)}))
    lithe.load(policy)
    edit_tensors(weights(policy), lambda tensors: tensors.update({lm_head + "2": torch.zeros(2)}))
    refused(policy, lm_head + "2")


def test_one_tensor_stored_twice_must_be_the_same(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.zeros(2)}
    save_file(tensors, weights(tmp_path))
    names = {"a": "x", "b": "x", "c": _lerobot.UNUSED}
    found = _lerobot.tensors(tmp_path, names.get)
    assert list(found) == ["x"] and torch.equal(found["x"], tensors["a"]) and found["x"].data_ptr() % 64 == 0
    with pytest.raises(ValueError, match="c and a should be one tensor and differ"):
        _lerobot.tensors(tmp_path, {**names, "c": "x"}.get)
    with pytest.raises(ValueError, match=r"1 tensors that the model does not know \(b\)"):
        _lerobot.tensors(tmp_path, {"a": "x", "c": "y"}.get)


def test_weights_in_other_files(policy):
    weights(policy).rename(policy / "pytorch_model.bin")
    refused(policy, "pytorch_model.bin", "pickle", "safetensors")
    (policy / "model.safetensors.index.json").write_text("{}")
    refused(policy, "several files", "merge")
    for name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (policy / name).unlink()
    refused(policy, "model.safetensors is missing")


# -- configuration and processors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(auto_map={"AutoModel": "evil.Model"}), ("auto_map", "run code")),
        (lambda c: c.update(extra=[{"trust_remote_code": True}]), ("trust_remote_code", "run code")),
        (lambda c: c.update(type="act"), ("'act'", "pi0 (pi), pi05 (pi)")),
        (lambda c: c.update(use_peft=True), ("adapter", "merge")),
        (lambda c: c.update(use_relative_actions=True), ("relative actions are on", "0 steps")),
        (lambda c: c.update(n_obs_steps=2), ("n_obs_steps",)),
        (lambda c: c.update(tokenizer_max_length=40), ("48", "40", "tokenizer_max_length")),
        (lambda c: c.update(image_resolution=[16, 24]), ("image_resolution",)),
        (lambda c: c.update(image_resolution=[32, 32]), ("patches",)),
        (lambda c: c.update(time_sampling_scale=0.9), ("time_sampling_scale", "0.9", "0.999")),
        (lambda c: c["input_features"].pop("observation.state"), ("observation.state", "input_features")),
        (lambda c: c["input_features"].pop("observation.images.top"), ("no camera",)),
        (lambda c: c["input_features"].update({"observation.image": FEATURES["observation.images.top"]}), ("called",)),
        (lambda c: c["output_features"]["action"].update(shape=[9]), ("action", "9")),
    ],
)
def test_configurations_that_are_refused(policy, change, words):
    edit(policy / "config.json", change)
    refused(policy, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "\ufffe", "[" * 100_000])
def test_files_that_are_no_json_object(policy, text):
    (policy / "config.json").write_text(text)
    refused(policy, "config.json", "fetch it again")


def test_missing_processors(policy):
    (policy / BEFORE).unlink()
    refused(policy, BEFORE, "migrate_policy_normalization")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (BEFORE, lambda d: d["steps"].append({"class": "os.system", "config": {}}), ("os.system", "import")),
        (BEFORE, lambda d: d["steps"].append({"registry_name": "mirror", "config": {}}), ("'mirror'", "does not know")),
        (BEFORE, lambda d: d["steps"].remove(step(d, "tokenizer_processor")), ("'tokenizer_processor' 0 times",)),
        (BEFORE, lambda d: d["steps"].append(step(d, "normalizer")), ("'normalizer_processor' 2 times",)),
        (BEFORE, lambda d: d["steps"].reverse(), ("before normalising",)),
        (BEFORE, lambda d: d.update(steps=7), ("list of processor steps",)),
        (BEFORE, lambda d: step(d, "relative").update(config={"enabled": True}), ("relative actions",)),
        (AFTER, lambda d: step(d, "absolute").update(config={"enabled": True}), ("relative actions",)),
        (BEFORE, lambda d: step(d, "device")["config"].update(float_dtype="bfloat16"), ("bfloat16",)),
        (BEFORE, lambda d: step(d, "normalizer").pop("state_file"), ("no statistics for 'observation.state'",)),
        (AFTER, lambda d: step(d, "unnormalizer").pop("state_file"), ("no statistics for 'action'",)),
        (
            BEFORE,
            lambda d: step(d, "normalizer")["config"]["features"].pop("observation.state"),
            ("left out 'observation.state'", "unnormalised"),
        ),
        (
            BEFORE,
            lambda d: step(d, "normalizer")["config"].update(normalize_observation_keys=["observation.images.top"]),
            ("left out 'observation.state'",),
        ),
        (BEFORE, lambda d: step(d, "normalizer")["config"].update(eps=0.1), ("eps=0.1",)),
        (BEFORE, lambda d: step(d, "normalizer")["config"]["norm_map"].update(VISUAL="MEAN_STD"), ("images",)),
        (BEFORE, lambda d: step(d, "normalizer")["config"]["norm_map"].update(STATE="LOG"), ("'LOG'", "QUANTILES")),
        (BEFORE, lambda d: step(d, "normalizer")["config"]["norm_map"].update(STATE="MEAN_STD"), ("'mean'", "none")),
        (BEFORE, lambda d: step(d, "normalizer")["config"]["norm_map"].update(ACTION="IDENTITY"), ("disagree",)),
        (BEFORE, lambda d: step(d, "normalizer").update(state_file="../stats.safetensors"), ("inside the folder",)),
        (BEFORE, lambda d: step(d, "normalizer").update(state_file="stats.pt"), ("inside the folder",)),
        (
            BEFORE,
            lambda d: step(d, "normalizer").update(state_file="gone.safetensors"),
            ("gone.safetensors", "missing"),
        ),
        (BEFORE, lambda d: step(d, "tokenizer_processor")["config"].update(padding_side="left"), ("padding_side",)),
        (BEFORE, lambda d: step(d, "tokenizer_processor")["config"].update(truncation=False), ("truncation",)),
        (
            BEFORE,
            lambda d: step(d, "rename")["config"].update(rename_map={"observation.joints": "observation.state"}),
            ("observation.joints",),
        ),
        (
            BEFORE,
            lambda d: step(d, "rename")["config"].update(rename_map={"a": "x", "b": "x"}),
            ("two observations",),
        ),
    ],
)
def test_processors_that_are_refused(policy, file, change, words):
    edit(policy / file, change)
    refused(policy, *words)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON document but its root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, x in inner for p in ((*path, key), *places(x, (*path, key)))]


@pytest.mark.parametrize("file", ["config.json", BEFORE, AFTER])
def test_no_damaged_setting_ends_in_a_traceback(policy, file, monkeypatch):
    """Any value replaced by one of another kind, or gone: the policy loads, or one sentence says why not."""

    def outlined(config, *rest):  # the weights are sound
        PiConfig.parse(config)
        return SimpleNamespace(filled=lambda: SimpleNamespace(origin=None))

    monkeypatch.setattr(Pi, "_outlined", outlined)
    monkeypatch.setattr("lithe.registry.entry_points", lambda **about: ())  # looking for plug-ins takes longest
    sound, refusals = json.loads((policy / file).read_text()), 0
    for n, path in enumerate(places(sound)):
        spoilt = json.loads(json.dumps(sound))
        home = spoilt
        for key in path[:-1]:
            home = home[key]
        if n % 6:
            home[path[-1]] = [None, "x", -1, [], {"x": 1}][n % 6 - 1]
        else:
            del home[path[-1]]
        (policy / file).write_text(json.dumps(spoilt))
        try:
            lithe.load(policy)
        except ValueError:
            refusals += 1
    assert refusals > 5, "most of these should matter"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"action.q01": torch.ones(ACTION)}), ("disagree",)),
        (lambda t: t["action.q99"].fill_(float("nan")), ("'q99' of 'action'", "finite")),
        (lambda t: t.update({"action.q99": torch.ones(ACTION + 1)}), ("2 finite numbers",)),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("action")], ("no statistics for 'action'",)),
    ],
)
def test_statistics_that_are_refused(policy, change, words):
    edit_tensors(policy / "stats_after.safetensors", change)
    refused(policy, *words)


# -- tokenizer -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_from_the_folder_that_the_policy_names(policy, tmp_path):
    (tmp_path / "words").mkdir()
    (policy / "tokenizer.json").rename(tmp_path / "words" / "tokenizer.json")
    named = str(tmp_path / "words")
    edit(policy / BEFORE, lambda d: step(d, "tokenizer_processor")["config"].update(tokenizer_name=named))
    loaded: Any = lithe.load(policy)
    assert loaded.tokenizer.encode("push").ids == make_tokenizer().encode("push").ids


def test_a_tokenizer_from_the_hub(policy, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (policy / "tokenizer.json").rename(cache / "tokenizer.json")
    asked = []

    def fetch(name, file):
        asked.append((name, file))
        if file != "tokenizer.json":
            raise EntryNotFoundError("the tokenizer has no settings")
        return str(cache / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert lithe.load(policy)
    assert asked == [("lab/words", "tokenizer.json"), ("lab/words", "tokenizer_config.json")]


def test_a_tokenizer_that_is_nowhere_is_one_sentence(policy, monkeypatch):
    def fail(*args):
        raise LocalEntryNotFoundError("offline\nand more")

    (policy / "tokenizer.json").unlink()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    refused(policy, "lab/words", "(offline)", "put its tokenizer.json", str(policy))
    edit(policy / BEFORE, lambda d: step(d, "tokenizer_processor")["config"].update(tokenizer_name="/not/here"))
    refused(policy, "'/not/here'", "neither here nor a hub id")
    edit(policy / BEFORE, lambda d: step(d, "tokenizer_processor")["config"].pop("tokenizer_name"))
    refused(policy, "neither holds nor names a tokenizer")


def test_settings_that_vanished_from_the_hub_are_not_taken_for_none(policy, tmp_path, monkeypatch):
    def fetch(name, file):
        if file != "tokenizer.json":
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path / "tokenizer.json")

    (policy / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    refused(policy, "(offline)")


@pytest.mark.parametrize("spelling", ["<bos>", {"content": "<bos>"}])
def test_settings_beside_a_tokenizer_overrule_it(policy, spelling):
    settings = {"add_bos_token": True, "add_eos_token": True, "bos_token": spelling, "eos_token": "<eos>"}
    (policy / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = source.tokenizer(policy, None).encode("ab").ids
    assert (ids[0], ids[-1]) == (2, 1) and len(ids) == 4
    (policy / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<start>"}))
    with pytest.raises(ValueError, match="'<start>' to every prompt"):
        source.tokenizer(policy, None)


def test_tokenizers_that_do_not_fit(policy):
    (policy / "tokenizer.json").write_text("{}")
    refused(policy, "tokenizer.json", "cannot be read")
    made = make_tokenizer()
    made.add_tokens([f"<loc{i}>" for i in range(100)])
    made.save(str(policy / "tokenizer.json"))
    loaded = lithe.load(policy)
    loaded.observe([observe()])
    with pytest.raises(ValueError, match="number 358, the model knows 320"):
        loaded.observe([{**observe(), "task": "push <loc98>"}])


def test_padding_and_truncation_of_a_tokenizer_are_switched_off(policy):
    made = make_tokenizer()
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.save(str(policy / "tokenizer.json"))
    assert len(source.tokenizer(policy, None).encode("push").ids) == 4
