"""Surgery: what a cut keeps, copies and writes down, how it is replayed without weights, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lithe import surgery
from lithe.families.pi import Pi, PiConfig
from lithe.surgery import KeepLayers, Stack


class Toy(nn.Module):
    """Two lockstep lists, a tied weight and a buffer."""

    stacks = (Stack("body", ("left", "inner.right"), ("inner.depth",), index="place"),)

    def __init__(self, depth: int = 4):
        super().__init__()
        self.left = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.inner = nn.Module()
        self.inner.right = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))
        self.inner.depth, self.history = depth, []
        for position in range(depth):
            self.left[position].place = self.inner.right[position].place = position
        self.embed, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("derived", torch.arange(2.0), persistent=False)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_a_student_layer_is_the_teacher_layer_it_came_from(toy):
    student = surgery.cut(toy, [KeepLayers("body", (0, 2, 3))])
    for path in ("left", "inner.right"):
        layers = student.get_submodule(path)
        assert [layer.place for layer in layers] == [0, 1, 2]
        for layer, origin in zip(layers, (0, 2, 3), strict=True):
            assert torch.equal(layer.weight, toy.get_submodule(path)[origin].weight)
    assert student.inner.depth == 3
    assert torch.equal(student.embed.weight, toy.embed.weight) and torch.equal(student.kept, toy.kept)


def test_a_cut_leaves_the_teacher_alone(toy):
    before = copies(toy)
    student = surgery.cut(toy, [KeepLayers("body", (1,))])
    with torch.no_grad():
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in toy.state_dict().items())
    assert (len(toy.left), toy.inner.depth, toy.history) == (4, 4, [])
    assert [layer.place for layer in toy.left] == [0, 1, 2, 3]


def test_teacher_and_student_share_no_memory(toy):
    student = surgery.cut(toy, [KeepLayers("body", (0, 3))])
    theirs = {t.data_ptr() for t in (*toy.parameters(), *toy.buffers())}
    assert theirs.isdisjoint(t.data_ptr() for t in (*student.parameters(), *student.buffers()))


def test_tied_tensors_stay_tied_and_are_not_the_teachers(toy):
    student = surgery.cut(toy, [KeepLayers("body", (0, 1))])
    assert student.head.weight is student.embed.weight
    assert student.head.weight is not toy.head.weight


def test_what_does_not_train_or_is_not_stored_stays_so(toy):
    toy.left[0].requires_grad_(False)
    student = surgery.cut(toy, [KeepLayers("body", (0, 1))])
    assert [p.requires_grad for p in student.left.parameters()] == [False, False, True, True]
    assert "derived" not in student.state_dict() and torch.equal(student.derived, toy.derived)


def test_dropped_layers_are_never_copied(toy, monkeypatch):
    cloned, sound = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: cloned.append(self.numel()) or sound(self))
    student = surgery.cut(toy, [KeepLayers("body", (2,))])
    assert sum(cloned) == sum(t.numel() for t in (*student.parameters(), *student.buffers()))


def test_without_ops_a_cut_is_a_copy(toy):
    student = surgery.cut(toy, [])
    assert student.history == [] and student is not toy
    assert all(torch.equal(value, toy.state_dict()[key]) for key, value in student.state_dict().items())


def test_cuts_add_up_in_the_history(toy):
    once = surgery.cut(toy, [KeepLayers("body", (0, 1, 3))])
    twice = surgery.cut(once, [KeepLayers("body", (0, 2))])
    assert twice.history == [
        {"op": "KeepLayers", "stack": "body", "layers": [0, 1, 3]},
        {"op": "KeepLayers", "stack": "body", "layers": [0, 2]},
    ]
    assert once.history == twice.history[:1]
    assert torch.equal(twice.left[1].weight, toy.left[3].weight)


@pytest.mark.parametrize("variant", ["pi05", "pi0"])
def test_a_history_rebuilds_every_shape_on_the_meta_device(variant):
    teacher = Pi.fresh("pico", variant=variant, depth=6)
    by_path = {"trunk.layers": (0, 1, 2)}
    student = surgery.cut(teacher, [KeepLayers("trunk", (0, 1, 3, 5)), KeepLayers("trunk", (0, 2, 3), by_path)])
    history = [surgery.parse(op) for op in json.loads(json.dumps(student.history))]
    with torch.device("meta"):
        blank = Pi(PiConfig.parse(json.loads(json.dumps(student.describe()))))
    surgery.replay(blank, history)
    assert all(tensor.is_meta for tensor in blank.state_dict().values())
    shapes = [{key: t.shape for key, t in model.state_dict().items()} for model in (blank, student)]
    assert shapes[0] == shapes[1]
    assert blank.history == student.history and blank.describe() == student.describe()


def test_by_path_cuts_one_list_differently(toy):
    op = KeepLayers("body", (0, 2), {"left": (0, 1)})
    student = surgery.cut(toy, [op])
    for path, origins in (("left", (0, 1)), ("inner.right", (0, 2))):
        for layer, origin in zip(student.get_submodule(path), origins, strict=True):
            assert torch.equal(layer.weight, toy.get_submodule(path)[origin].weight)
    assert surgery.parse(json.loads(json.dumps(surgery.dump(op)))) == op


@pytest.mark.parametrize(
    ("op", "complaint"),
    [
        (KeepLayers("tower", (0,)), "Toy has no stack 'tower'; it has body"),
        (KeepLayers("body", ()), "keeps 0 layers"),
        (KeepLayers("body", (0, 4)), r"cannot keep layers \[0, 4\] of 4; give increasing indices from 0 to 3"),
        (KeepLayers("body", (-1, 0)), r"cannot keep layers \[-1, 0\]"),
        (KeepLayers("body", (2, 1)), "increasing"),
        (KeepLayers("body", (1, 1)), "increasing"),
        (KeepLayers("body", (0, 1), {"inner.right": (0,)}), "inner.right: keeps 1 layers where 2 were expected"),
    ],
)
def test_an_impossible_cut_is_refused(toy, op, complaint):
    before = copies(toy)
    with pytest.raises(ValueError, match=complaint):
        surgery.cut(toy, [op])
    assert all(torch.equal(value, before[key]) for key, value in toy.state_dict().items()) and toy.history == []


def test_an_op_of_a_newer_version_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown surgery 'Fold'; this version of lithe knows KeepLayers.*update lithe"
    ):
        surgery.parse({"op": "Fold", "stack": "trunk"})


def test_a_stack_out_of_step_is_noticed(toy):
    del toy.left[3]
    with pytest.raises(AssertionError, match="stack body is out of step"):
        surgery.stack_depth(toy, toy.stacks[0])


def test_reach_follows_attributes(toy):
    assert surgery.reach(toy, "") is toy
    assert surgery.reach(toy, "inner.depth") == 4
