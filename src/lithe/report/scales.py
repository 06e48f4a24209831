"""Axes and how numbers are written: where a value lies from 0 to 1, which ticks are round, which digits say enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10


@dataclass(frozen=True)
class Scale:
    """Where a value lies on an axis: 0 at its beginning, 1 at its end."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], zero: bool = False, log: bool = False, least: float = 0.0) -> Scale:
        """An axis that holds all values. Linear ones end on round numbers.

        log: where every value is positive; else, zero: begin there. least: shortest length of a linear axis.
        """
        found = [v for v in values if isfinite(v)]
        log = log and min(found, default=0.0) > 0
        found += [0.0] if zero and not log else []
        low, high = (min(found), max(found)) if found else (0.0, 1.0)
        if log:
            margin = max((high / low) ** 0.06, 1.05)
            return cls(low / margin, high * margin, True)
        missing = max(least - (high - low), 0.0 if high > low else abs(high) or 1.0)
        low, high = (low, high + missing) if zero and low == 0 else (low - missing / 2, high + missing / 2)
        step = _step(high - low)
        return cls(floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step)

    def clipped(self, low: float, high: float) -> Scale:
        """The same axis inside the range a quantity can have."""
        return Scale(max(self.low, low), min(self.high, high), self.log)

    def __call__(self, value: float) -> float:
        if self.log:
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis."""
        if not self.log:
            step = _step(self.high - self.low, most)
            first = ceil(self.low / step - 1e-9)
            return [i * step for i in range(first, floor(self.high / step + 1e-9) + 1)]
        decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            found = [d * 10.0**e for e in decades for d in digits if self.low <= d * 10.0**e <= self.high]
            if len(found) >= 3:
                return found[:: ceil(len(found) / most)]
        return Scale(self.low, self.high).ticks(most)


def _step(length: float, most: int = 6) -> float:
    """The smallest of 1, 2, 2.5, 5, 10, ... that divides `length` into at most `most` parts."""
    power = 10.0 ** floor(log10(length / most))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10, 20) if power * digit * most >= length * (1 - 1e-9))


def short(value: float) -> str:
    """Three significant digits, thousands separated, a real minus sign."""
    if value == 0 or not isfinite(value):
        return tick(value)
    value = float(f"{value:.3g}") if abs(value) < 1000 else value  # 0.0009999 is a thousandth, not 0.001000
    digits = max(0, 2 - floor(log10(abs(value))))
    if digits > 6:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def tick(value: float) -> str:
    """As short as the number allows."""
    return f"{value:.6g}".replace("-", "−")


def signed(value: float) -> str:
    """As `tick`, a plus sign in front of what is positive."""
    return f"{value:+.6g}".replace("-", "−") if value else "0"


def count(number: int, noun: str) -> str:
    """How many of something."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(rate: float) -> str:
    """A rate in per cent, without the sign."""
    return f"{100 * rate:.1f}"


def factor(ratio: float) -> str:
    """A ratio inside brackets."""
    return f"{ratio:.2f}"


def points(difference: float) -> str:
    """A difference of rates in percentage points, always signed."""
    return f"{100 * difference:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def times(ratio: float) -> str:
    """A speed-up."""
    return f"{ratio:.2f}×"


def brackets(low: str, high: str) -> str:
    """An interval, never broken over lines."""
    return f"[{low},\u00a0{high}]"
