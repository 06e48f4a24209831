"""`lithe cut`: bit for bit the folder that loading, cutting and saving writes, from the kept bytes alone, or none."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lithe
from lithe import _ranges, api, checkpoint, cli, surgery
from lithe._disk import sha256
from lithe.cut import cut, operate, summary
from lithe.families import _smolvla_names
from lithe.families._outline import Outline
from lithe.families.pi import Pi
from lithe.families.smolvla import SmolVLA
from lithe.methods.finetune import Finetune
from lithe.methods.first_k import FirstK
from lithe.methods.shallow_pi import ShallowPi
from lithe.surgery import KeepLayers

VISION = {"image": 16, "patch": 8, "width": 32, "mlp": 16, "layers": 1, "heads": 16}
METHOD = ShallowPi(keep=2)


def make(family: Any, dtype: torch.dtype, **settings: Any) -> Any:
    """A fitted pico policy without a trivial weight."""
    model, generator = family.fresh("pico", **settings), torch.Generator().manual_seed(1)
    spread = {"mean": 0.0, "std": 0.5, "q01": -1.0, "q99": 1.0}
    stats = {key: {name: [x] * 4 for name, x in spread.items()} for key in ("observation.state", "action")}
    model.fit_to(stats, ["push"], model.spec.cameras)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


def lithe_pi(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return checkpoint.save(make(Pi, dtype), home / "policy")


def cut_before(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    model = surgery.cut(make(Pi, dtype), [KeepLayers("trunk", (0, 1, 3))])
    model.origin = {"source": "lab/policy", "revision": "0" * 40}
    return checkpoint.save(model, home / "policy")


def lithe_smolvla(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return checkpoint.save(make(SmolVLA, dtype, self_attention_every=0, expert_every=2), home / "policy")


def lerobot_pi05(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return foreign.lerobot(make(Pi, dtype, vision=VISION), home / "policy")


def lerobot_pi0(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return foreign.lerobot(make(Pi, dtype, vision=VISION, variant="pi0"), home / "policy")


def lerobot_smolvla(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return foreign.lerobot(make(SmolVLA, dtype), home / "policy", places=36)


def openpi(home: Path, foreign: Any, dtype: torch.dtype) -> Path:
    return foreign.openpi(make(Pi, dtype, vision={**VISION, "image": 224, "patch": 56}), home / "policy")


FOLDERS: list[Callable[..., Path]] = [
    lithe_pi,
    cut_before,
    lithe_smolvla,
    lerobot_pi05,
    lerobot_pi0,
    lerobot_smolvla,
    openpi,
]


@pytest.fixture
def policy(tmp_path, foreign) -> Path:
    """A LeRobot policy in bf16."""
    return lerobot_pi05(tmp_path, foreign, torch.bfloat16)


@pytest.fixture
def older(tmp_path) -> Path:
    """What lies where the student is to go."""
    return checkpoint.save(make(Pi, torch.float32), tmp_path / "student")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / checkpoint.WEIGHTS
    tensors = {key: x.clone() for key, x in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def the_long_way(folder: Path, method: Any, out: Path, dtype: torch.dtype | None) -> Path:
    """Load all, cut, save. Of one method its settings are noted, as training does."""
    teacher = lithe.load(folder)
    student = surgery.cut(teacher, method.cut(teacher))
    name = type(method).__module__.rpartition(".")[2]
    return checkpoint.save(student, out, dtype, method={"name": name, **vars(method)})


# -- the same folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.__name__)
def test_it_is_the_folder_that_loading_cutting_and_saving_writes(kind, dtype, tmp_path, foreign, monkeypatch):
    monkeypatch.setattr(_ranges, "BLOCK", 1000)  # most tensors take several blocks, and the ring goes round
    monkeypatch.setattr(_ranges, "FLUSH", 20_000)
    folder = kind(tmp_path, foreign, dtype)
    document = cut(folder, METHOD, tmp_path / "out")
    expected = the_long_way(folder, METHOD, tmp_path / "expected", dtype)
    assert contents(tmp_path / "out") == contents(expected), "even the weights' file is the same to the byte"
    assert {x.dtype for x in load_file(tmp_path / "out" / checkpoint.WEIGHTS).values()} == {dtype}
    student: Any = lithe.load(tmp_path / "out")
    noise = student.noise(2, torch.Generator().manual_seed(0))
    batch = student.example(2)
    assert torch.equal(student.act(batch, noise), lithe.load(expected).act(batch, noise))
    assert document["rows"][1]["depth"] == {"trunk": 2} and document["rows"][1]["ops"] == student.history[-1:]
    assert document["rows"][1]["stored_bytes"] == sum(x.nbytes for x in student.to(dtype).state_dict().values())


@pytest.mark.parametrize(
    "method", [FirstK(keep=3), ShallowPi(keep=3, scope="expert_only"), Finetune()], ids=lambda m: type(m).__name__
)
def test_every_kind_of_surgery_there_is(method, policy, tmp_path):
    cut(policy, method, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(the_long_way(policy, method, tmp_path / "e", torch.bfloat16))


def test_ops_instead_of_a_method(policy, tmp_path):
    ops = [KeepLayers("trunk", (1, 2, 3)), KeepLayers("trunk", (0, 2))]
    lithe.cut(policy, ops, tmp_path / "out")
    expected = checkpoint.save(surgery.cut(lithe.load(policy), ops), tmp_path / "expected", torch.bfloat16)
    assert contents(tmp_path / "out") == contents(expected)


def test_every_tensor_keeps_the_type_that_it_has(policy, tmp_path):
    """As openpi stores them: most of them in bf16, norms and what touches actions in float32."""
    wide = ("norm", "action_", "time_", "vision")
    edit(
        policy, lambda tensors: tensors.update({k: x.float() for k, x in tensors.items() if any(w in k for w in wide)})
    )
    cut(policy, METHOD, tmp_path / "out")
    found = load_file(tmp_path / "out" / checkpoint.WEIGHTS)
    teacher = lithe.load(policy)
    expected = surgery.cut(teacher, METHOD.cut(teacher)).state_dict()
    assert {x.dtype for x in found.values()} == {torch.bfloat16, torch.float32} and found.keys() == expected.keys()
    assert all(torch.equal(x.float(), expected[key]) for key, x in found.items())
    assert found["expert.layers.1.input_norm.dense.weight"].dtype == found["action_in.bias"].dtype == torch.float32
    assert found["trunk.layers.1.q_proj.weight"].dtype == torch.bfloat16
    again = checkpoint.load(tmp_path / "out", None).state_dict()
    assert all(torch.equal(x, found[key]) for key, x in again.items())


def test_files_are_laid_out_as_safetensors_does(tmp_path):
    kinds = [torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16]
    kinds += [torch.float16, torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.float64, torch.int64]
    tensors = {f"{kind}"[::-1]: torch.ones(3, 5).to(kind) for kind in kinds}
    tensors |= {"ü": torch.ones(()), "empty": torch.ones(0, 4), 'b"\\': torch.ones(1), "z": torch.ones(2).half()}
    save_file(tensors, tmp_path / "old.safetensors")
    found = _ranges.ranges(tmp_path / "old.safetensors")
    assert {place.dtype for place in found.values()} <= _ranges.SIZES.keys() and found.keys() == tensors.keys()
    pieces = {key: _ranges.Piece(place, place.shape) for key, place in found.items()}
    digest = _ranges.write(tmp_path / "new.safetensors", tmp_path / "old.safetensors", pieces)
    assert (tmp_path / "new.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()
    assert digest == sha256(tmp_path / "new.safetensors")


# -- what is read ----------------------------------------------------------------------------------------------------


def test_only_what_is_kept_is_read(policy, tmp_path, monkeypatch):
    """Counted; and what is dropped, or needed by nobody, may be rubbish."""
    read, whole = [], _ranges._read
    monkeypatch.setattr(
        _ranges, "_read", lambda stream, block, path: read.append(len(block)) or whole(stream, block, path)
    )
    monkeypatch.setattr("safetensors.torch.load_file", lambda *a: pytest.fail("loaded everything"))
    monkeypatch.setattr("lithe.source.stream", only_beside_weights(lithe.source.stream))
    monkeypatch.setattr("lithe.families._lerobot.tensors", lambda *a: pytest.fail("read the weights"))
    dropped = (".layers.1.", ".layers.2.", "gemma_expert.lm_head")
    edit(
        policy,
        lambda tensors: [
            x.fill_(torch.nan) for key, x in tensors.items() if any(d in key for d in dropped) and "vision" not in key
        ],
    )
    document = cut(policy, METHOD, tmp_path / "out")
    kept = document["rows"][1]["stored_bytes"]
    header = (tmp_path / "out" / checkpoint.WEIGHTS).stat().st_size - kept
    assert sum(read) == kept + header and kept < 0.8 * document["rows"][0]["stored_bytes"]


def only_beside_weights(stream: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def checked(path: Path) -> Any:
        assert path.name != checkpoint.WEIGHTS, "read the weights"
        return stream(path)

    return checked


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kept_numbers_must_be_finite(dtype, bad, policy, older, tmp_path):
    key, before = "model.paligemma_with_expert.gemma_expert.model.layers.3.mlp.up_proj.weight", contents(older)

    def spoil(tensors: dict[str, Tensor], value: float) -> None:
        tensors[key] = tensors[key].to(dtype)
        tensors[key].view(-1)[-1] = value

    edit(policy, lambda tensors: spoil(tensors, bad))
    with pytest.raises(ValueError, match=f"{key} holds other things than finite numbers"):
        cut(policy, METHOD, older)
    assert contents(older) == before
    edit(policy, lambda tensors: spoil(tensors, -torch.finfo(dtype).max))
    cut(policy, METHOD, older)
    assert contents(older) != before


# -- refusals --------------------------------------------------------------------------------------------------------

KEY = "model.paligemma_with_expert.paligemma.model.language_model.layers.1.mlp.up_proj.weight"  # which METHOD drops
BIAS = "model.action_in_proj.bias"  # which it keeps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(KEY), r"1 missing tensors \(trunk.layers.1.up_proj.weight\)"),
        (lambda t: t.update({KEY: t[KEY][1:]}), r"1 misshaped tensors \(trunk.layers.1.up_proj.weight\)"),
        (lambda t: t.update({"model.spare": torch.ones(1)}), r"1 tensors that the model does not know \(model.spare\)"),
        (lambda t: t.update({BIAS: torch.ones(16, dtype=torch.int8)}), "action_in_proj.bias holds I8"),
        (lambda t: t.update({BIAS: torch.ones(16, dtype=torch.complex64)}), "has the type C64"),
    ],
)  # fmt: skip
def test_the_whole_teacher_must_fit_though_most_of_it_is_not_read(change, words, policy, older):
    before = contents(older)
    edit(policy, change)
    with pytest.raises(ValueError, match=words):
        cut(policy, METHOD, older)
    assert contents(older) == before and sorted(p.name for p in older.parent.iterdir()) == ["policy", "student"]


def test_a_truncated_teacher(policy, older, monkeypatch):
    before, path = contents(older), policy / checkpoint.WEIGHTS
    content, whole = path.read_bytes(), _ranges.write

    def shrink(*args: Any, **more: Any) -> str:  # while it is read
        path.write_bytes(content[:-1000])
        return whole(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(_ranges, "write", shrink)
        with pytest.raises(ValueError, match="ended while it was read"):
            cut(policy, METHOD, older)
    with pytest.raises(ValueError, match="truncated or damaged"):
        cut(policy, METHOD, older)
    assert contents(older) == before and not list(older.parent.glob(".*"))


def test_copies_of_one_tensor_must_be_the_same(tmp_path, monkeypatch):
    """No file that lithe knows has such today; the rule is that of loading."""
    monkeypatch.setattr(_ranges, "BLOCK", 16)
    folder = checkpoint.save(make(Pi, torch.float32), tmp_path / "policy")
    outline = api.outline(folder)
    names = dict.fromkeys(outline.model.state_dict())
    again = Outline(
        outline.model, folder, lambda key: "embed.weight" if key == "copy" else key if key in names else None
    )
    monkeypatch.setattr(api, "outline", lambda *a: again)
    edit(folder, lambda tensors: tensors.update(copy=tensors["embed.weight"].clone()))
    assert cut(folder, [], tmp_path / "out")
    for change in (lambda x: x[-1, -1].add_(1), lambda x: x[0, 0].add_(1)):
        edit(folder, lambda tensors, change=change: change(tensors["copy"]))
        with pytest.raises(
            ValueError, match=r"embed.weight and copy should be|copy and embed.weight should be one tensor"
        ):
            cut(folder, [], tmp_path / "out")
    edit(folder, lambda tensors: tensors.update(copy=tensors["embed.weight"].half()))
    with pytest.raises(ValueError, match="should be one tensor and differ"):
        cut(folder, [], tmp_path / "out")


@dataclass(frozen=True)
class Does:
    """An op that does something to the first trunk layer."""

    what: str

    def apply(self, model: Any) -> None:
        layers = model.trunk.layers
        one, other = layers[0].q_proj, layers[1].q_proj
        if self.what == "make":
            one.bias = nn.Parameter(other.weight.data[0])
        elif self.what == "replace":
            one.weight = nn.Parameter(torch.empty(one.weight.shape, device="meta"))
        elif self.what == "scale":
            one.weight.data.mul_(2)
        elif self.what == "swap":
            one.weight.data, other.weight.data = other.weight.data, one.weight.data
        elif self.what == "copy":
            with torch.no_grad():
                one.weight.copy_(other.weight)
        elif self.what == "tie":
            one.weight = other.weight
        elif self.what == "exchange":  # only their places: every number is still in the file
            layers[0].q_proj, layers[1].q_proj = other, one


@pytest.mark.parametrize("what", ["make", "replace", "scale", "swap", "copy", "tie"])
def test_a_surgery_that_computes_weights_is_refused(what, policy, older):
    before = contents(older)
    with pytest.raises(ValueError, match=r"this surgery does more to weights .* use lithe.surgery.cut"):
        cut(policy, [Does(what)], older)
    assert contents(older) == before


def test_it_is_told_what_became_of_each_tensor(policy):
    model = api.skeleton(policy)
    names = operate(model, [KeepLayers("trunk", (1, 3)), Does("exchange")])
    assert names["expert.layers.1.q_proj.weight"] == "expert.layers.3.q_proj.weight"
    assert names["trunk.layers.0.q_proj.weight"] == "trunk.layers.3.q_proj.weight"
    assert (
        names["trunk.layers.0.k_proj.weight"] == "trunk.layers.1.k_proj.weight"
        and names["embed.weight"] == "embed.weight"
    )
    assert names.keys() == model.state_dict().keys()


def test_what_is_no_place_for_a_student(policy, tmp_path):
    treasure = tmp_path / "home" / "treasure.txt"
    treasure.parent.mkdir()
    treasure.write_text("gold")
    for out in (treasure.parent, treasure, policy.parent):
        with pytest.raises(ValueError, match="holds"):
            cut(policy, METHOD, out)
    for out in (policy, policy / "..", tmp_path / "home" / ".." / "policy"):
        with pytest.raises(ValueError, match="holds the policy that is to be cut"):
            cut(policy, METHOD, out)
    assert treasure.read_text() == "gold" and lithe.load(policy)
    (tmp_path / "empty").mkdir()
    cut(policy, METHOD, tmp_path / "empty")
    cut(policy, ShallowPi(keep=3), tmp_path / "empty")
    assert lithe.load(tmp_path / "empty").depth() == 3
    own = contents(tmp_path / "empty")
    with pytest.raises(ValueError, match="is to be cut"):
        cut(tmp_path / "empty", METHOD, tmp_path / "empty")
    assert contents(tmp_path / "empty") == own


def test_what_cannot_be_cut(tmp_path, policy):
    with pytest.raises(ValueError, match="pi:mini has random weights"):
        cut("pi:mini", METHOD, tmp_path / "out")
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        cut("nowhere", METHOD, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot keep 9 layers of 4"):
        cut(policy, ShallowPi(keep=9), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_full_disk_or_ctrl_c_leaves_what_was_there(error, policy, older, monkeypatch):
    before, put = contents(older), _ranges._Pipe._put
    for k in (1, 2, 40, 10_000):
        left = [k]

        def fail(self: Any, block: memoryview, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                put(self, block[: len(block) // 2])
                raise error
            put(self, block)

        monkeypatch.setattr(_ranges._Pipe, "_put", fail)
        if k == 10_000:
            cut(policy, METHOD, older)
            assert lithe.load(older).depth() == 2
            continue
        with pytest.raises(type(error), match="the disk is full" if isinstance(error, OSError) else None):
            cut(policy, METHOD, older)
        assert contents(older) == before and not list(older.parent.glob(".*"))


def test_a_disk_that_fails_late_is_noticed(policy, older, monkeypatch):
    """What the kernel took may still not fit: the disk says so when it is asked to write."""
    before = contents(older)

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_ranges, "FLUSH", 1)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        cut(policy, METHOD, older)
    assert contents(older) == before and not list(older.parent.glob(".*"))


# -- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb(policy, tmp_path, monkeypatch, capsys):
    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lithe", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, _ = run("cut", policy, "shallow_pi", "keep=2", "--out", tmp_path / "small")
    document = json.loads(out.splitlines()[-1])
    assert code == 0 and document["kind"] == "cut" and document["settings"]["method"]["keep"] == 2
    assert "2 of 4 trunk layers" in " ".join(out.split()) and "not trained" in summary(document)
    assert contents(tmp_path / "small") == contents(the_long_way(policy, METHOD, tmp_path / "e", torch.bfloat16))
    for words, message in (
        ((policy, "shalow_pi"), "did you mean 'shallow_pi'"),
        ((policy, "shallow_pi", "kep=2"), "did you mean 'keep'"),
        ((policy, "shallow_pi", "keep=2", "--revision", "main"), "no revisions"),
        ((tmp_path / "nowhere", "shallow_pi"), "there is no folder"),
        (("pi:mini", "shallow_pi"), "random weights"),
    ):
        code, _, error = run("cut", *words, "--out", tmp_path / "other")
        assert code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "other").exists()


def test_a_hub_id_and_where_it_came_from(policy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append(k["revision"]) or str(policy))
    cut("lab/policy", METHOD, tmp_path / "out", revision="v1")
    card = json.loads((tmp_path / "out" / checkpoint.CARD).read_text())
    assert card["origin"] == {"source": "lab/policy", "revision": "v1"} and asked == ["v1"]
    assert lithe.load(tmp_path / "out").origin == card["origin"], "not the folder it was cut into"


def test_a_table_of_places_is_made_as_at_loading(tmp_path, foreign):
    """The one tensor that is not stored as it is used: read by itself, the others as bytes."""
    folder = lerobot_smolvla(tmp_path, foreign, torch.bfloat16)
    cut(folder, METHOD, tmp_path / "out")
    stored, found = (load_file(place / checkpoint.WEIGHTS) for place in (folder, tmp_path / "out"))
    (old,), (new,) = ([x for k, x in them.items() if k.endswith(_smolvla_names.PLACES)] for them in (stored, found))
    assert (len(old), len(new)) == (36, 16) and torch.equal(new, _smolvla_names.place_patches(old, 4))
