"""The intervals against published examples, and their coverage: an interval that promises 95 % has to deliver it."""

from __future__ import annotations

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest

from lithe.evaluate.statistics import Z, censored, middle, newcombe, order, paired, success, wilson

# Newcombe 1998a, Stat. Med. 17:857-872, table I, method 3.
WILSON = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
# Both succeed, only the first, only the second, neither: Fagerland, Lydersen and Laake 2014 (data of Bentur et al. 2009
# and Cavo et al. 2012), and Altman et al. 2000, Statistics with Confidence, ch. 6.
NEWCOMBE = {
    (1, 1, 7, 12): (-0.507, -0.026),
    (59, 6, 16, 80): (-0.1186, -0.0046),
    (14, 5, 0, 22): (0.011, 0.226),
}


@pytest.mark.parametrize(("counts", "interval"), WILSON.items(), ids=str)
def test_wilson_matches_the_published_examples(counts, interval):
    assert wilson(*counts) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("counts", "interval"), NEWCOMBE.items(), ids=str)
def test_newcombe_matches_the_published_examples(counts, interval):
    assert newcombe(*counts) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize("n", [1, 5, 50])
def test_wilson_stays_inside_and_mirrors(n):
    for k in range(n + 1):
        low, high = wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def tables(n):
    return [(a, b, c, n - a - b - c) for a, b, c in product(range(n + 1), repeat=3) if a + b + c <= n]


def test_newcombe_holds_the_estimate_and_mirrors():
    for a, b, c, d in tables(9):
        low, high = newcombe(a, b, c, d)
        assert -1 <= low <= (b - c) / 9 <= high <= 1
        assert low < high  # no certainty from nine pairs, however alike they are
        assert newcombe(a, c, b, d) == pytest.approx((-high, -low))


def wald(a, b, c, d):
    n = a + b + c + d
    half = Z * sqrt((b + c) - (b - c) ** 2 / n) / n
    return (b - c) / n - half, (b - c) / n + half


def unpaired(a, b, c, d):
    n, (l1, u1), (l2, u2) = a + b + c + d, wilson(a + b, a + b + c + d), wilson(a + c, a + b + c + d)
    one, two = (a + b) / n, (a + c) / n
    return one - two - sqrt((one - l1) ** 2 + (u2 - two) ** 2), one - two + sqrt((u1 - one) ** 2 + (two - l2) ** 2)


# Probabilities of both, only ours, only theirs: a student as good as its teacher, a worse one, an undistilled cut.
TRUTHS = [(0.85, 0.05, 0.05), (0.7, 0.05, 0.15), (0.35, 0.05, 0.55), (0.9, 0.02, 0.05), (0.25, 0.25, 0.25)]


def coverage(method, truth, n=50, trials=2000):
    """Share of trials whose interval holds the true difference, and the mean width."""
    counts = np.random.default_rng(0).multinomial(n, [*truth, 1 - sum(truth)], size=trials)
    intervals = np.array([method(*(int(x) for x in row)) for row in counts])
    difference = truth[1] - truth[2]
    held = (intervals[:, 0] <= difference) & (difference <= intervals[:, 1])
    return held.mean(), (intervals[:, 1] - intervals[:, 0]).mean()


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_newcombe_covers(truth):
    held, width = coverage(newcombe, truth)
    assert 0.935 <= held <= 1.0
    if truth[0] > 0.6:  # pairs that mostly agree: this is what pairing is for
        assert width < 0.95 * coverage(unpaired, truth)[1]


def test_the_coverage_test_can_fail():
    assert coverage(wald, (0.9, 0.02, 0.05))[0] < 0.935
    assert coverage(lambda *cell: tuple(0.8 * x for x in newcombe(*cell)), (0.35, 0.05, 0.55))[0] < 0.935


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (5, 0), (6, 1), (10, 2), (20, 6), (50, 18), (100, 40)])
def test_order_gives_the_tabulated_ranks(n, rank):
    assert order(n) == rank


def test_order_is_the_largest_rank_that_holds_95_percent():
    for n in range(6, 60):
        outside = [2 * sum(comb(n, k) for k in range(rank)) / 2**n for rank in (order(n), order(n) + 1)]
        assert outside[0] <= 0.05 < outside[1]


def test_middle_needs_enough_values_for_an_interval():
    assert middle([]) is None
    assert middle([3, 1]) == {"median": 2.0, "mean": 2.0, "n": 2}
    ten = middle(list(range(10, 0, -1)))
    assert ten == {"median": 5.5, "mean": 5.5, "n": 10, "low": 2.0, "high": 9.0}


def test_what_was_missed_is_later_than_all_that_was_seen():
    assert censored([1, 2, 3, 4, 5, 6], 0) == middle([1, 2, 3, 4, 5, 6])
    assert censored([1, 2, 3, 4, 5, 6, 7, 8], 2) == {"median": 5.5, "n": 10, "low": 2.0}
    assert censored([1, 2, 3, 4, 5, 6, 7, 8, 9], 1) == {"median": 5.5, "n": 10, "low": 2.0, "high": 9.0}
    assert censored([1, 2, 3, 4, 5], 5) == {"n": 10, "low": 2.0}, "half of them is not beyond the middle"
    assert censored([], 3) == {"n": 3}


def test_outcomes_are_counted_pair_by_pair():
    ours, theirs = [True, True, False, False, True], [True, False, True, False, False]
    assert success(ours) == {"rate": 0.6, "n": 5, "low": wilson(3, 5)[0], "high": wilson(3, 5)[1]}
    low, high = newcombe(1, 2, 1, 1)
    assert paired(ours, theirs) == {"difference": pytest.approx(0.2), "low": low, "high": high, "n": 5}
    with pytest.raises(ValueError, match="shorter"):
        paired(ours, theirs[:-1])
