"""Which layers a static depth cut keeps."""

from __future__ import annotations


def uniform(depth: int, keep: int) -> tuple[int, ...]:
    """`keep` layers spread evenly, first and last included, ties rounded half to even (Shallow-pi's initialisation).

    Raises ValueError when `keep` is not between 1 and `depth`.
    """
    check(depth, keep)
    if keep == 1:
        return (0,)
    return tuple(round(i * (depth - 1) / (keep - 1)) for i in range(keep))


def first(depth: int, keep: int) -> tuple[int, ...]:
    """The first `keep` layers."""
    check(depth, keep)
    return tuple(range(keep))


def check(depth: int, keep: int) -> None:
    if not 1 <= keep <= depth:
        raise ValueError(f"cannot keep {keep} layers of {depth}: set method.keep to a number from 1 to {depth}")
