"""The shipped teacher is what its card says: small, strict to load, skilled, and it listens to the instruction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lithe
from lithe import result
from lithe.checkpoint import CARD, WEIGHTS
from lithe.evaluate import evaluate

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "zoo" / "pi05-mini-metaworld"
FAUCETS = ["faucet-open-v3", "faucet-close-v3"]
SWAPPED = {"faucet-open-v3": "Rotate the faucet clockwise", "faucet-close-v3": "Rotate the faucet counter-clockwise"}


def rate(document: dict, task: str) -> float:
    return document["rows"][0]["tasks"][task]["success"]["rate"]


def test_the_teacher_is_small_and_carries_its_papers():
    assert (TEACHER / WEIGHTS).stat().st_size <= 16e6
    card = json.loads((TEACHER / CARD).read_text())
    proof = result.load(TEACHER / "eval.json")
    assert card["history"] == []
    assert card["step"] == card["steps"]
    assert proof["settings"]["policies"]["teacher"]["weights"] == card["sha256"], "the Result is of other weights"
    assert (TEACHER / "README.md").is_file()
    assert lithe.load(TEACHER).depth() == 12


def test_the_result_beside_it_says_what_is_promised():
    proof = result.load(TEACHER / "eval.json")
    row = proof["rows"][0]
    assert len(row["tasks"]) >= 8
    assert all(task["success"]["n"] >= 50 for task in row["tasks"].values())
    assert row["success"]["rate"] >= 0.90
    assert min(task["success"]["rate"] for task in row["tasks"].values()) >= 0.70


@pytest.mark.timeout(300)
def test_swapping_the_instruction_changes_what_it_does():
    """The two faucet tasks show the same scene: only the sentence tells which way to turn."""
    told = evaluate([TEACHER], tasks=FAUCETS, episodes=6, seed=500, processes=2)
    fooled = evaluate([TEACHER], tasks=FAUCETS, episodes=6, seed=500, processes=2, instructions=SWAPPED)
    for task in FAUCETS:
        assert rate(told, task) >= 0.5
        assert rate(fooled, task) <= rate(told, task) - 0.5
