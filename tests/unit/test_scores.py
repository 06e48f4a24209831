"""Layer scores against slow computations that share no code with them, and what a calibration pass must not touch."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lithe.data.fake import FakeData
from lithe.families.base import Family
from lithe.families.pi import Pi
from lithe.families.smolvla import SmolVLA
from lithe.scores import KINDS, agreed, cka, scores
from lithe.types import Batch, Draw, Route, Tap

FED = FakeData(cameras=("corner2", "gripperPOV"), episodes=2, length=10, size=16)
SHORT = {"samples": 7, "batch": 3, "seed": 5}
STACKS = ("trunk.layers", "expert.layers")


def awake(kind: type[Family] = Pi, **settings: object) -> Family:
    """A fitted pico policy with every parameter moved away from its zero initialisation."""
    model = kind.fresh("pico", **settings)
    model.fit_to(FED.stats, FED.tasks, FED.cameras)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@pytest.fixture(scope="module", params=["pi05", "pi0", "smolvla"])
def policy(request) -> Family:
    return awake(SmolVLA) if request.param == "smolvla" else awake(variant=request.param)


@pytest.fixture(scope="module")
def found(policy) -> dict[str, list[float]]:
    return scores(policy, FED, **SHORT)


def passes(model: Family) -> list[tuple[Batch, Draw]]:
    """The batches and draws of SHORT, in the order in which `scores` makes them."""
    frames, generator = np.random.default_rng(5).choice(len(FED), 7, replace=False), torch.Generator().manual_seed(5)
    made = []
    for part in (frames[:3], frames[3:6], frames[6:]):
        batch = model.batch(FED.samples(part, model.spec.horizon))
        made.append((batch, model.draw(batch, generator, augment=False)))
    return made


def tokens(model: Family, stream: str) -> list[np.ndarray]:
    """For every place between layers, all valid tokens of all frames [M, D] in float64."""
    places: list[list[np.ndarray]] = [[] for _ in range(5)]
    for batch, draw in passes(model):
        with torch.no_grad():
            out = model(batch, draw, [Tap(stream, i) for i in range(5)])
        for i, place in enumerate(places):
            x = out.taps[Tap(stream, i)]
            place.append((x[out.prefix_BN] if stream == "prefix" else x.flatten(0, 1)).double().numpy())
    return [np.concatenate(place) for place in places]


def over_streams(model: Family, alike) -> list[float]:
    """1 - likeness, the mean of prefix and suffix; of the suffix alone behind the last layer."""
    streams = (itertools.pairwise(tokens(model, stream)) for stream in ("prefix", "suffix"))
    prefix, suffix = ([alike(a, b) for a, b in pairs] for pairs in streams)
    return [1 - (p + s) / 2 for p, s in zip(prefix[:-1], suffix)] + [1 - suffix[-1]]


# -- each score, slowly ------------------------------------------------------------------------------------------------


def test_cos_is_one_minus_the_mean_cosine_of_valid_tokens(policy, found):
    def alike(a, b):
        return np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b)])

    assert found["cos"] == pytest.approx(over_streams(policy, alike), rel=1e-5)


def test_cka_is_that_of_the_gram_matrices(policy, found):
    """Seven frames have fewer tokens than are sampled at most, so that all of them count."""

    def alike(a, b):
        centre = np.eye(len(a)) - 1 / len(a)
        k, m = (centre @ x @ x.T @ centre for x in (a, b))
        return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))

    assert found["cka"] == pytest.approx(over_streams(policy, alike), rel=1e-5)


def sample_losses(model: Family, batch: Batch, draw: Draw, route: Route | None = None) -> Tensor:
    with torch.no_grad():
        out = model(batch, draw, (), route)
    assert model.task_loss(out).item() == pytest.approx(_loss(model, out).mean().item(), rel=1e-5)
    return _loss(model, out)


def _loss(model: Family, out) -> Tensor:
    return (out.pred_BRHA - out.target_BRHA)[..., : model.loss_dims].double().square().mean(dim=(1, 2, 3))


def test_gate_is_how_each_samples_loss_reacts_to_a_share(policy, found):
    expected, step = [], 0.01
    for layer in range(4):
        slopes = []
        for batch, draw in passes(policy):
            ends = []
            for sign in (1, -1):
                share = torch.ones(len(batch), 4)
                share[:, layer] += sign * step
                ends.append(sample_losses(policy, batch, draw, Route((True,) * 4, share)))
            slopes += ((ends[0] - ends[1]) / (2 * step)).abs().tolist()
        expected.append(np.mean(slopes))
    assert found["gate"] == pytest.approx(expected, rel=0.01)


def layer_weights(model: Family, layer: int) -> list[nn.Parameter]:
    return [p for path in STACKS for p in model.get_submodule(path)[layer].parameters()]


def test_fisher_is_the_mean_square_of_every_weights_gradient(policy, found):
    model = copy.deepcopy(policy).requires_grad_(True)
    expected = [0.0] * 4
    for batch, draw in passes(model):
        model.zero_grad()
        model.task_loss(model(batch, draw)).backward()
        for layer in range(4):
            squares = [
                float(g) ** 2
                for w in layer_weights(model, layer)
                for g in (torch.zeros(w.numel()) if w.grad is None else w.grad.flatten()).double().tolist()
            ]
            expected[layer] += len(batch) / 7 * np.mean(squares)
    assert found["fisher"] == pytest.approx(expected, rel=1e-4)


def test_taylor_is_the_slope_of_the_loss_when_all_weights_of_a_layer_shrink(policy, found):
    expected, step = [], 0.01
    for layer in range(4):
        ends = []
        for sign in (1, -1):
            model = copy.deepcopy(policy)
            with torch.no_grad():
                for weight in layer_weights(model, layer):
                    weight.mul_(1 + sign * step)
            ends.append(torch.cat([sample_losses(model, *made) for made in passes(model)]).mean())
        expected.append(abs(float(ends[0] - ends[1])) / (2 * step))
    assert found["taylor"] == pytest.approx(expected, rel=0.02, abs=2e-4)


def test_a_layer_that_changes_nothing_scores_exactly_nothing():
    model = awake(depth=5)
    for path in STACKS:
        for layer in (1, 3):
            nn.init.zeros_(model.get_submodule(path)[layer].o_proj.weight)
            nn.init.zeros_(model.get_submodule(path)[layer].down_proj.weight)
    found = scores(model, FED, ("cos", "cka", "gate"), **SHORT)
    for kind, values in found.items():
        assert values[1] == values[3] == 0.0, kind
        assert min(values[0], values[2], values[4]) > 1e-5, kind


def test_a_stream_behind_expert_layers_that_are_not_there_counts_where_it_is_read():
    """Every other layer of this expert is absent, the last one too: nothing reads the trunk behind layer 2."""
    model = awake(SmolVLA, expert_every=2)
    found = scores(model, FED, ("cos",), **SHORT)["cos"]
    assert found[3] == 0.0
    assert min(found[:3]) > 1e-4


# -- linear CKA --------------------------------------------------------------------------------------------------------


def test_cka_knows_no_rotation_no_scale_and_no_shift():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 12, generator=generator)
    y = 0.5 * x + y
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    moved = -7.5 * (y.double() @ turn) + 100
    assert cka(x, x) == pytest.approx(1, abs=1e-14)
    assert cka(x, moved) == pytest.approx(cka(x, y), rel=1e-9)
    assert 0.1 < cka(x, y) < 0.9
    stretched = y * torch.linspace(0.1, 3, 12)  # no rotation
    assert abs(cka(x, stretched) - cka(x, y)) > 0.01
    assert cka(x, torch.randn(300, 5, generator=generator)) < 0.1


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [FED, FakeData(cameras=FED.cameras, episodes=1, length=1, size=16)])
def test_one_frame_is_refused(data):
    with pytest.raises(ValueError, match=r"from 1 frame say nothing.*calibrate on at least two"):
        scores(awake(), data, samples=1 if data is FED else 64)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"kinds": ("cosine",)}, "no layer score 'cosine'; did you mean 'cos'"),
        ({"batch": 0}, "a batch of at least one frame, not 0"),
    ],
)
def test_settings_without_sense_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        scores(awake(), FED, **wrong)


def test_a_family_that_shows_no_stream_can_still_be_scored_by_gradients(monkeypatch):
    model, forward = awake(), Pi.forward

    def blind(self, batch, draw, taps=(), route=None):
        return forward(self, batch, draw, [tap for tap in taps if tap.kind != "suffix"], route)

    monkeypatch.setattr(Pi, "forward", blind)
    for kind in ("cos", "cka"):
        with pytest.raises(ValueError, match=r"pi does not show the suffix stream.*gate, fisher or taylor"):
            scores(model, FED, (kind,), **SHORT)
    assert scores(model, FED, ("gate",), **SHORT)["gate"][0] > 0


def test_scores_that_are_not_finite_are_refused():
    model = awake()
    with torch.no_grad():
        model.action_out.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="gate score of layer 0 is not finite: look for NaN"):
        scores(model, FED, ("gate",), **SHORT)


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_the_teacher_is_left_exactly_as_it_was():
    model = awake()
    model.train()
    model.expert.eval()
    marks = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        parameter.requires_grad_(i % 3 == 0)
        parameter.grad = torch.full_like(parameter, float(i)) if i % 2 else None
        marks[name] = (parameter, parameter.requires_grad, parameter.grad, parameter.detach().clone())
    modes = {name: module.training for name, module in model.named_modules()}
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: seen.extend(part.training for part in module.modules()))
    random = torch.get_rng_state()
    first = scores(model, FED, **SHORT)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for i, (name, parameter) in enumerate(model.named_parameters()):
        was, flag, gradient, value = marks[name]
        assert parameter is was and parameter.requires_grad == flag and torch.equal(parameter, value), name
        assert parameter.grad is gradient, name
        assert gradient is None or bool((gradient == i).all()), name
    assert torch.equal(torch.get_rng_state(), random)
    assert seen and not any(seen), "the pass runs in training mode"
    assert first == scores(model.eval().requires_grad_(False), FED, **SHORT), "the teacher's flags change its scores"
    assert first != scores(model, FED, **{**SHORT, "seed": 6})


def test_no_score_depends_on_which_others_are_asked_for():
    model = awake()
    found = scores(model, FED, **SHORT)
    assert list(found) == list(KINDS)
    for kind in KINDS:
        assert scores(model, FED, (kind,), **SHORT) == {kind: pytest.approx(found[kind], rel=1e-6)}


def test_weights_in_bfloat16_are_scored_in_float32():
    rounded = awake().to(torch.bfloat16)
    found = scores(rounded, FED, **SHORT)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert found == scores(copy.deepcopy(rounded).float(), FED, **SHORT)


def test_every_process_takes_the_scores_of_the_main_one(monkeypatch):
    def main_ones(tensors):
        for tensor in tensors:
            tensor.copy_(torch.tensor([4.0, 3.0, 2.0, 1e-12], dtype=torch.float64))

    monkeypatch.setattr("lithe._processes.equalise", main_ones)
    assert agreed(awake(), FED, "gate") == [4.0, 3.0, 2.0, 1e-12]
