"""Which layers a static depth cut keeps: by their place, by a score that needs a calibration pass, or as listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from lithe.data.base import Data
from lithe.families.base import Family
from lithe.registry import suggestion
from lithe.scores import agreed
from lithe.surgery import check_selection

By = Literal["uniform", "first", "cos", "cka", "gate", "fisher", "taylor"]


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


def choose(depth: int, keep: int, by: str = "uniform", scores: Sequence[float] | None = None) -> tuple[int, ...]:
    """`keep` layers of `depth`. scores: one a layer; the highest stay, of equal ones the earlier layer.

    Raises ValueError for a `by` that needs scores where there are none.
    """
    check(depth, keep)
    if by not in get_args(By):
        known = get_args(By)
        raise ValueError(f"method.by cannot be {by!r}{suggestion(by, known)}; choose from {', '.join(known)}")
    if by in ("uniform", "first"):
        return uniform(depth, keep) if by == "uniform" else first(depth, keep)
    if scores is None:
        raise ValueError(
            f"which layers {by!r} keeps is known after a pass over data, which lithe distill makes: without it, name "
            "them (method.layers=[0, 3, ...]); lithe profile with --data prints the scores"
        )
    assert len(scores) == depth, f"{len(scores)} scores for {depth} layers"
    return highest(scores, keep)


def highest(scores: Sequence[float], keep: int) -> tuple[int, ...]:
    """The layers with the highest scores, of equal ones the earlier."""
    check(len(scores), keep)
    ranked = sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))
    return tuple(sorted(ranked[:keep]))


def kept(depth: int, keep: int, by: str, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that a method's knobs name: `layers` where there are any (keep: as many, or 0), else chosen `by`."""
    if not layers:
        return choose(depth, keep, by)
    if keep not in (0, len(layers)):
        raise ValueError(f"method.layers names {len(layers)} layers, method.keep is {keep}: set it to {len(layers)}")
    check_selection(tuple(layers), depth, len(layers), "method.layers")
    return tuple(layers)


def chosen(teacher: Family, data: Data, keep: int, by: str, layers: Sequence[int]) -> tuple[int, ...]:
    """What belongs into `layers`: as it is where nothing has to be calibrated, else chosen by scores over `data`."""
    depth = teacher.depth("trunk")
    if layers or by in ("uniform", "first"):
        return tuple(layers)
    check(depth, keep)
    return choose(depth, keep, by, agreed(teacher, data, by))
