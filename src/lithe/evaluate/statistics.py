"""Intervals for what an evaluation counts. All are 95 % and two-sided, none needs a random number.

    success rate        Wilson's score interval (Wilson 1927; Newcombe 1998a, Stat. Med. 17:857-872, method 3)
    paired difference   Newcombe's hybrid score interval (Newcombe 1998b, Stat. Med. 17:2635-2650, method 10, the
                        "square-and-add" interval that Fagerland, Lydersen and Laake 2014 recommend)
    steps, jerk         median with the exact interval between order statistics (binomial, distribution-free)

Episodes of several tasks are pooled as if drawn from one mixture. In truth the tasks are fixed, which can only make the
pooled intervals a little too wide. They speak about new initial states of these tasks, not about new tasks or new
trainings of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, inf, isfinite, sqrt
from statistics import NormalDist, fmean, median
from typing import Any

Z = NormalDist().inv_cdf(0.975)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Interval of a rate, inside [0, 1]."""
    rate, shrink = successes / n, 1 + Z * Z / n
    centre = (rate + Z * Z / (2 * n)) / shrink
    half = Z / shrink * sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half  # rounding would leave 1e-17
    return low, 1.0 if successes == n else centre + half


def success(outcomes: Sequence[bool]) -> dict[str, Any]:
    """{rate, n, low, high}."""
    low, high = wilson(sum(outcomes), len(outcomes))
    return {"rate": sum(outcomes) / len(outcomes), "n": len(outcomes), "low": low, "high": high}


def newcombe(both: int, ours: int, theirs: int, neither: int) -> tuple[float, float]:
    """Interval of (our rate - their rate) when n pairs split into: both succeed, only ours, only theirs, neither."""
    n, one, two = both + ours + theirs + neither, both + ours, both + theirs
    (low1, high1), (low2, high2) = wilson(one, n), wilson(two, n)
    down1, up1, down2, up2 = one / n - low1, high1 - one / n, two / n - low2, high2 - two / n
    phi = _correlation(both, ours, theirs, neither)
    difference = (ours - theirs) / n
    below = sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    above = sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
    return difference - below, difference + above


def _correlation(both: int, ours: int, theirs: int, neither: int) -> float:
    """Phi of the 2x2 table; a positive one is corrected towards 0 by n/2, or few pairs would look too much alike."""
    n = both + ours + theirs + neither
    margins = (both + ours) * (theirs + neither) * (both + theirs) * (ours + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - ours * theirs
    return (max(excess - n / 2, 0.0) if excess > 0 else excess) / sqrt(margins)


def paired(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, Any]:
    """{difference, low, high, n} of our rate minus theirs; element i of both is the same episode."""
    pairs = list(zip(ours, theirs, strict=True))
    counts = [pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
    low, high = newcombe(*counts)
    return {"difference": (counts[1] - counts[2]) / len(pairs), "low": low, "high": high, "n": len(pairs)}


def middle(values: Sequence[float]) -> dict[str, Any] | None:
    """{median, mean, n, low, high} with the interval of the median; None without values.

    Fewer than six values hold no 95 % interval: then low and high are absent.
    """
    if not values:
        return None
    found = {"median": float(median(values)), "mean": fmean(values), "n": len(values)}
    rank = order(len(values))
    if rank:
        ranked = sorted(values)
        found |= {"low": float(ranked[rank - 1]), "high": float(ranked[-rank])}
    return found


def censored(values: Sequence[float], missed: int) -> dict[str, Any]:
    """As `middle`, where `missed` more values are later than all of these. What lies among those is absent, and with
    any of them the mean; n counts them."""
    found = middle([*values, *[inf] * missed]) or {}
    return {key: value for key, value in found.items() if isfinite(value)}


def order(n: int) -> int:
    """The largest r for which the r-th smallest and r-th largest of n values hold the median in >= 95 %; 0 = none."""
    tail, rank = 0, 0  # tail = 2**n times P(Binomial(n, 1/2) < rank)
    while 40 * (tail := tail + comb(n, rank)) <= 2**n:
        rank += 1
    return rank
