"""How many layers a routed policy ran: one arithmetic for closed loop and stopwatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def layers_run(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"mean", "histogram", "each", "repeated"} over all passes of these episodes, each as `Runtime.layers` tells it.

    mean: layers an observation, those of repeated passes included. histogram: {number of layers: share of passes}.
    each: share of passes in which each layer ran. repeated: share of observations that every layer computed again.
    """
    passes, decided = (sum(e["passes"] for e in episodes), sum(e["passes"] - e["repeated"] for e in episodes))
    counts = [sum(column) for column in zip(*(e["counts"] for e in episodes), strict=True)]
    ran = [sum(column) for column in zip(*(e["ran"] for e in episodes), strict=True)]
    return {
        "mean": sum(n * count for n, count in enumerate(counts)) / decided,  # what was repeated is paid on top
        "histogram": {str(n): count / passes for n, count in enumerate(counts) if count},
        "each": [round(count / passes, 6) for count in ran],
        "repeated": sum(e["repeated"] for e in episodes) / decided,
    }
