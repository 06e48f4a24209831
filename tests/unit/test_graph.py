"""Graph heads: the formula written slowly, and what must hold whatever the tokens are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from lithe.methods._graph import LAYERS, Head, Heads, HeadSizes, depth_weights, frozen, squares

SMALL = HeadSizes(width=12, inner=16, capsule=6, outputs=3, neighbours=2)
ALONE = HeadSizes(width=12, inner=16, capsule=6, outputs=3, neighbours=0)
BOTH = pytest.mark.parametrize("sizes", [SMALL, ALONE], ids=["gat", "mlp_pool"])


def head(sizes: HeadSizes = SMALL) -> Head:
    torch.manual_seed(0)
    made = Head(sizes)
    with torch.no_grad():  # peaked attention: with even weights half of the checks could not fail
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


def tokens(count: int = 7, rms: float = 1.0, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, 12, generator=torch.Generator().manual_seed(1)) * rms


def everything(count: int = 7, batch: int = 2) -> Tensor:
    return torch.ones(batch, count, dtype=torch.bool)


def slowly(head: Head, x_ND: Tensor, valid: list[int]) -> tuple[Tensor, Tensor]:
    """One sample with loops in double precision, over real tokens only, as section 2.1 writes it: w times exp(e)."""
    head, k = copy.deepcopy(head).double(), head.sizes.neighbours
    x = {i: head.norm(head.narrow(x_ND[i].double())) for i in valid}
    scale = math.sqrt(head.sizes.inner)
    affinity = {(i, j): (head.phi(x[i]) @ head.psi(x[j]) / scale).exp() for i in valid for j in valid}
    near = {i: {*sorted(valid, key=lambda j: -float(affinity[i, j]))[:k], i} for i in valid}
    weight = {(i, j): affinity[i, j] / sum(affinity[i, m] for m in near[i]) for i in valid for j in near[i]}
    for layer in head.layers:
        value = {i: layer.value(x[i]).view(4, -1) for i in valid}
        after = {}
        for i in valid:
            heard = torch.zeros_like(x[i])
            for h in range(4):
                fit = {j: layer.mine[h, 0] @ value[i][h] + layer.theirs[h, 0] @ value[j][h] for j in near[i]}
                raw = {j: weight[i, j] * torch.where(f > 0, f, 0.2 * f).exp() for j, f in fit.items()}
                heard = heard + sum(r / sum(raw.values()) * value[j][h] for j, r in raw.items()) / 4
            after[i] = x[i] + heard.relu()
        x = after
    pull = torch.stack([head.pool(x[i])[0] for i in valid]).softmax(0)
    capsule = head.capsule(sum(p * x[i] for p, i in zip(pull, valid, strict=True)))
    return capsule, head.action(capsule)


@torch.no_grad()
def test_a_head_is_the_slow_formula():
    made, valid = head(), everything()
    valid[0, [2, 5]] = False
    found = made(tokens(), valid)
    for row in range(2):
        kept = [i for i in range(7) if valid[row, i]]
        for fast, slow in zip(found, slowly(made, tokens()[row], kept), strict=True):
            torch.testing.assert_close(fast[row].double(), slow, rtol=1e-5, atol=1e-6)


def test_every_token_listens_to_its_best_neighbours_and_itself_and_weights_sum_to_one():
    made, valid, seen = head(), everything(), []
    valid[0, [2, 5]] = False
    x = made.norm(made.narrow(tokens()))
    edges = made.edges(x, valid)
    affinity = (made.phi(x) @ made.psi(x).mT).masked_fill(~valid[:, None], -math.inf)
    for b in range(2):
        for i in range(7):
            kept = {j for j in range(7) if edges[b, i, j] > -math.inf}
            assert kept == {*affinity[b, i].topk(2).indices.tolist(), *([i] if valid[b, i] else [])}
    weights = made.layers[0].weights
    made.layers[0].weights = lambda *inputs: seen.append(weights(*inputs)) or seen[-1]
    made.layers[0](x, edges)
    for w in (edges.exp(), seen[0]):
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]))
        assert w.movedim(0, -1)[..., [2, 5], 0].abs().max() == 0.0, "padding is listened to"


@BOTH
@pytest.mark.parametrize("rms", [1e-3, 0.5, 1.0, 30.0, 100.0])
def test_values_and_gradients_are_finite_and_no_token_is_lost(sizes, rms):
    """[8.1.5] The released code has NaN from 0.5 on."""
    made, x = head(sizes), tokens(rms=rms).requires_grad_()
    capsule, action = made(x, everything())
    (capsule.square().sum() + action.square().sum()).backward()
    assert capsule.isfinite().all()
    assert action.isfinite().all()
    gradients = [x.grad, *(p.grad for p in made.parameters())]
    assert all(g.isfinite().all() for g in gradients)
    assert (x.grad.abs().amax(-1) > 0).all(), "a token does not count"


@BOTH
@torch.no_grad()
def test_the_order_of_tokens_does_not_matter(sizes):
    """[8.1.7]"""
    made, order, valid = head(sizes), torch.tensor([3, 0, 6, 1, 5, 2, 4]), everything()
    valid[0, 2] = False
    for a, b in zip(made(tokens(), valid), made(tokens()[:, order], valid[:, order]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@BOTH
def test_padding_changes_nothing_whatever_stands_there(sizes):
    """[8.1.4]"""
    made = head(sizes)
    padded = torch.cat([tokens(), torch.full((2, 4, 12), 300.0)], dim=1).requires_grad_()
    plain, more = made(tokens(), everything()), made(padded, torch.cat([everything(), ~everything(4)], dim=1))
    for a, b in zip(plain, more, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    more[1].square().sum().backward()
    assert padded.grad[:, 7:].abs().max() == 0.0
    assert padded.grad[:, :7].abs().max() > 0.0


@torch.no_grad()
def test_fewer_tokens_than_neighbours_are_all_neighbours():
    made = head(HeadSizes(width=12, inner=16, capsule=6, outputs=3, neighbours=8))
    assert all(x.isfinite().all() for x in made(tokens(1), everything(1)))
    edges = made.edges(made.norm(made.narrow(tokens(3))), everything(3))
    assert edges.isfinite().all()


@torch.no_grad()
def test_the_graph_lets_tokens_hear_each_other_and_its_ablation_does_not():
    for sizes, hears in ((SMALL, True), (ALONE, False)):
        made = head(sizes)
        x = made.norm(made.narrow(tokens()))
        other = x.clone()
        other[:, 0] += 1.0
        edges = made.edges(x, everything()) if hears else None
        changed = (made.layers[0](other, edges) - made.layers[0](x, edges)).abs().amax(-1) > 0
        listeners = edges[:, :, 0] > -math.inf if hears else torch.arange(7).expand(2, 7) == 0
        assert (changed == listeners).all()
        assert changed[:, 1:].any() == hears


@torch.no_grad()
def test_heads_compute_in_float32_whatever_is_cast_around_them():
    made = head()
    expected = made(tokens().bfloat16().float(), everything())
    with torch.autocast("cpu", torch.bfloat16):
        found = made(tokens().bfloat16(), everything())
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_heads_are_one_a_layer_in_order():
    torch.manual_seed(0)
    made = Heads(SMALL, 3)
    streams = [tokens() * (i + 1) for i in range(3)]
    capsules, actions = made(streams, everything())
    assert capsules.shape == (3, 2, 6)
    assert actions.shape == (3, 2, 3)
    for i, own in enumerate(made.heads):
        assert torch.equal(capsules[i], own(streams[i], everything())[0])


def test_the_bottleneck_is_what_makes_heads_fit():
    """[7.7] 32 heads on OpenVLA: all they need to train is below the weights of its layers alone, in bfloat16."""
    with torch.device("meta"):
        made = Heads(HeadSizes(width=4096, inner=256, capsule=512, outputs=7, neighbours=8), 32)
    count = sum(p.numel() for p in made.parameters())
    assert count == 62_116_064  # 1.94 M a layer; the released heads have 177.3 M
    trained, held = 4 * 4 * count, 4 * count  # weights, gradients, both moments of Adam; the teacher's own copy
    assert trained + held < 0.1 * 2 * 32 * 202.4e6


def test_frozen_heads_hold_the_same_names_and_train_nothing():
    made, held = head(), frozen(copy.deepcopy(head()))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    names = [name for name, _ in made.named_parameters()]
    assert list(held.parameters()) == []
    assert sorted(held.state_dict()) == sorted(names)
    held.load_state_dict(made.state_dict())
    assert torch.equal(held(tokens(), everything())[1], made(tokens(), everything())[1])
    assert not held(tokens(), everything())[1].requires_grad


def test_depth_weights_are_those_of_the_released_code():
    """[8.1.6, 2.1]"""
    omega = depth_weights(2.0, 32)
    assert omega[:5].tolist() == pytest.approx([0.0, 0.003, 0.012, 0.028, 0.049], abs=6e-4)
    assert omega[-3:].tolist() == pytest.approx([2.58, 2.77, 2.95], abs=6e-3)
    assert float(omega.sum()) == pytest.approx(32, rel=1e-6)
    assert depth_weights(0.0, 5).tolist() == [1.0] * 5
    assert depth_weights(2.0, 1).tolist() == [1.0]


def test_squares_are_means_over_the_last_axis():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert squares(a, b).tolist() == [2.5, 4.5]
    assert LAYERS == 2
