"""Colour jitter: a function of its generator, one draw a view, nothing at strength 0."""

from __future__ import annotations

import pytest
import torch

from lithe import registry
from lithe.families._augment import colour_jitter


def images(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def jitter(x, seed=0, strength=1.0):
    return colour_jitter(x, torch.Generator().manual_seed(seed), strength)


def test_strength_zero_changes_and_draws_nothing():
    x, generator = images(2, 3, 3, 8, 8), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(colour_jitter(x, generator, 0.0), x)
    assert torch.equal(generator.get_state(), before)


def test_it_is_a_function_of_the_generator():
    x = images(2, 3, 3, 8, 8)
    assert jitter(x).dtype == torch.uint8 and jitter(x).shape == x.shape
    assert torch.equal(jitter(x), jitter(x)) and not torch.equal(jitter(x), jitter(x, seed=1))
    global_state = torch.get_rng_state()
    jitter(x)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_every_view_of_every_sample_has_its_own_factors():
    once = images(1, 1, 3, 8, 8).expand(3, 2, 3, 8, 8)
    changed = jitter(once).flatten(0, 1)
    assert len({tuple(view.flatten().tolist()) for view in changed}) == 6


def test_frames_of_one_view_share_their_factors():
    frame = images(2, 2, 1, 3, 8, 8)
    changed = jitter(frame.expand(2, 2, 4, 3, 8, 8))
    assert torch.equal(changed, changed[:, :, :1].expand_as(changed))
    assert torch.equal(changed[:, :, 0], jitter(frame[:, :, 0]))  # nor do other axes change what is drawn


def test_grey_stays_grey_and_only_colours_lose_saturation():
    grey = images(1, 4, 1, 8, 8).expand(1, 4, 3, 8, 8)
    changed = jitter(grey).int()
    assert (changed.amax(2) - changed.amin(2)).max() <= 1  # rounding
    assert not torch.equal(changed, grey.int())


def test_a_stronger_jitter_moves_further():
    x = images(8, 2, 3, 8, 8)
    moved = [(jitter(x, strength=s).float() - x.float()).abs().mean() for s in (0.1, 0.5, 1.0)]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_impossible_strengths_are_refused():
    for strength in (-0.1, 2.5, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 2"):
            jitter(images(1, 1, 3, 4, 4), strength=strength)


def test_floats_from_0_to_1_are_changed_like_bytes():
    x = images(2, 3, 3, 8, 8)
    changed = jitter(x / 255)
    assert changed.dtype == torch.float32 and changed.min() >= 0 and changed.max() <= 1
    assert (changed * 255 - jitter(x).float()).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("family", ["pi", "smolvla"])
@pytest.mark.parametrize("convention", ["lithe", "lerobot"])
def test_a_family_jitters_in_its_draw_and_only_when_it_trains(family, convention):
    model = registry.get("families", family).fresh("pico", jitter=1.0, shift=0, convention=convention)
    still = registry.get("families", family).fresh("pico", jitter=0.0, shift=0, convention=convention)
    batch = model.example(2)

    def view(policy, seed=0, augment=True):
        return policy.draw(batch, torch.Generator().manual_seed(seed), 1, augment).view_BVCYX

    assert torch.equal(view(model), view(model)) and not torch.equal(view(model), view(model, seed=1))
    assert not torch.equal(view(model), view(still))
    assert torch.equal(view(model, augment=False), view(still))
