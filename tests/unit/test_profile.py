"""Similarity and sensitivity, against layers whose answer is known and against computing them by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from rich.console import Console
from torch import nn

from lithe.data.fake import FakeData
from lithe.families.pi import Pi
from lithe.profile import TIMES, profile, similarity, table
from lithe.scores import KINDS, scores
from lithe.types import Route, Tap

FED = FakeData(cameras=("corner2", "gripperPOV"), size=16)


@pytest.fixture
def policy() -> Pi:
    """A pico policy whose adaptive norms are not zero, as after training: fresh ones make every expert layer idle."""
    model: Pi = import_module("lithe.bench").load("pi:pico")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.expert.named_parameters():
        if ".dense." in f".{name}":
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def idle(model: Pi, layer: int) -> None:
    for stack in (model.trunk, model.expert):
        nn.init.zeros_(stack.layers[layer].o_proj.weight)
        nn.init.zeros_(stack.layers[layer].down_proj.weight)


def test_a_layer_that_changes_nothing_is_exactly_alike_and_exactly_dispensable(policy):
    idle(policy, 2)
    document = profile(policy, FED, samples=8, batch=4)
    alike, hurt = document["similarity"], document["sensitivity"]
    assert alike["prefix"][2] == 1.0
    assert alike["suffix"][2] == [1.0] * len(TIMES)
    assert hurt["actions"][2] == 0.0
    assert hurt["velocity"][2] == [0.0] * len(TIMES)
    assert hurt["task_loss"][2] == 0.0
    for layer in (0, 1, 3):
        assert alike["prefix"][layer] < 0.9999
        assert max(alike["suffix"][layer]) < 0.9999
        assert hurt["actions"][layer] > 1e-4
        assert min(hurt["velocity"][layer]) > 1e-4
        assert hurt["task_loss"][layer] != 0


def test_an_untrained_expert_is_idle_everywhere():
    document = profile("pi:pico", samples=2, batch=2, times=(1.0, 0.5))
    assert document["similarity"]["suffix"] == [[1.0, 1.0]] * 4
    assert max(document["sensitivity"]["actions"]) == 0.0
    assert max(document["similarity"]["prefix"]) < 1.0


def by_hand(model: Pi, times: tuple[float, ...]):
    """One batch of four random samples in the order in which `profile` draws, without any of its code."""
    generator = torch.Generator().manual_seed(0)
    batch = model.example(4, generator)
    draw = model.draw(batch, generator, draws=len(times), augment=False)
    noise = draw.noise_BRHA[:, :1].repeat(1, len(times), 1, 1)
    draw = replace(draw, noise_BRHA=noise, time_BR=torch.tensor([times] * 4))
    return batch, draw, model.noise(4, generator)


@torch.no_grad()
def test_the_numbers_are_those_computed_by_hand(policy):
    times = (0.9, 0.3)
    document = profile(policy, samples=4, batch=4, times=times)
    batch, draw, noise = by_hand(policy, times)
    prefix = [Tap("prefix", i) for i in range(5)]
    suffix = [Tap("suffix", i) for i in range(5)]
    out = policy(batch, draw, taps=prefix + suffix)
    cosine = nn.CosineSimilarity(dim=-1)
    for layer in range(4):
        a, b = (out.taps[prefix[i]][out.prefix_BN] for i in (layer, layer + 1))
        assert document["similarity"]["prefix"][layer] == pytest.approx(cosine(a, b).mean().item(), abs=2e-6)
        for at in range(2):
            a, b = (
                out.taps[suffix[i]].reshape(4, 2, -1, policy.config.expert.width)[:, at] for i in (layer, layer + 1)
            )
            assert document["similarity"]["suffix"][layer][at] == pytest.approx(cosine(a, b).mean().item(), abs=2e-6)
    chunk, route = policy.act(batch, noise), Route.without(4, 1)
    moved = (policy.act(batch, noise, route=route) - chunk).square().mean() / chunk.square().mean()
    assert document["sensitivity"]["actions"][1] == pytest.approx(moved.sqrt().item(), rel=1e-3)
    turned = (policy(batch, draw, route=route).pred_BRHA - out.pred_BRHA)[:, 1]
    assert document["sensitivity"]["velocity"][1][1] == pytest.approx(
        (turned.square().mean() / out.pred_BRHA[:, 1].square().mean()).sqrt().item(), rel=1e-3
    )


def test_the_trunk_does_not_depend_on_time_and_the_expert_does(policy):
    early, late = (profile(policy, FED, samples=4, times=(t,), sensitivity=False)["similarity"] for t in (1.0, 0.1))
    assert early["prefix"] == late["prefix"]
    assert all(a != b for a, b in zip(early["suffix"], late["suffix"], strict=True))


def test_uneven_batches_weigh_every_sample_alike(policy):
    whole, parts = (profile(policy, FED, samples=7, batch=b, sensitivity=False)["similarity"] for b in (7, 3))
    assert whole["prefix"] == pytest.approx(parts["prefix"], abs=2e-6)


def test_the_task_loss_is_given_for_real_actions_only(policy):
    assert profile(policy, FED, samples=4)["sensitivity"]["task_loss_full"] > 0
    random = profile(policy, samples=4)
    assert "task_loss" not in random["sensitivity"]
    assert random["settings"]["inputs"] == "random"
    assert "sensitivity" not in profile(policy, samples=2, sensitivity=False)


def test_scores_are_those_a_training_run_would_choose_by(policy):
    document = profile(policy, FED, samples=6, batch=4, seed=2, times=(0.5,), sensitivity=False)
    assert document["scores"] == scores(policy, FED, samples=6, seed=2)
    assert [row["scores"]["cka"] for row in document["rows"]] == document["scores"]["cka"]
    assert json.loads(json.dumps(document)) == document
    page = io.StringIO()
    Console(file=page, width=80).print(table(document))
    lines = page.getvalue().splitlines()
    head = next(i for i, line in enumerate(lines) if "score: cos" in line and "taylor" in line)
    (row,) = [line for line in lines[head:] if line.strip(" │┃").startswith("3 ")]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][1:] == [
        f"{document['scores'][kind][3]:.3g}" for kind in KINDS
    ]
    assert "higher = keep" in page.getvalue()


@pytest.mark.parametrize("without", [{"kinds": ()}, {"samples": 1}, {"data": None}])
def test_scores_are_absent_where_they_were_not_asked_for_or_say_nothing(policy, without):
    document = profile(policy, **{"data": FED, "samples": 4, "times": (0.5,), "sensitivity": False, **without})
    assert "scores" not in document
    assert not any("scores" in row for row in document["rows"])
    page = io.StringIO()
    Console(file=page, width=80).print(table(document))
    assert "score" not in page.getvalue()


@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_the_result_is_a_heat_map_ready_json_and_the_same_again(variant):
    model = Pi.fresh("pico", variant=variant)
    first, again = (profile(model, samples=4, batch=2, seed=3) for _ in range(2))
    assert first == again
    assert json.loads(json.dumps(first)) == first
    assert first["kind"] == "profile"
    assert [len(row) for row in first["similarity"]["suffix"]] == [len(TIMES)] * 4
    assert [row["layer"] for row in first["rows"]] == [0, 1, 2, 3]
    assert {"prefix", "suffix", "suffix_low", "suffix_high"} == first["rows"][0]["similarity"].keys()


def test_no_more_samples_than_there_are_frames(policy):
    assert profile(policy, FED, samples=1000, batch=40, sensitivity=False, times=(0.5,))["settings"]["samples"] == len(
        FED
    )


def test_the_table_warns_of_random_inputs(policy):
    page = io.StringIO()
    Console(file=page, width=140).print(table(profile(policy, samples=2, times=(0.5,))))
    assert "RANDOM inputs" in page.getvalue()


def test_similarity_of_known_streams():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.bfloat16)
    y = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0]], dtype=torch.bfloat16)
    assert similarity(x, y).dtype == torch.float32
    assert similarity(x, y).tolist() == pytest.approx([1.0, -1.0, 0.5**0.5])


@pytest.mark.parametrize("wrong", [{"times": ()}, {"times": (0.0,)}, {"times": (1.1,)}, {"samples": 0}, {"batch": 0}])
def test_what_cannot_be_done_is_refused(policy, wrong):
    with pytest.raises(ValueError, match=r"times must lie in|at least one sample"):
        profile(policy, **wrong)
