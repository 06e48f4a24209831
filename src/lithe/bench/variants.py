"""What `lithe bench` makes of the policies it is given: an entry for every depth, runtime and number of steps.

Latency depends on shapes and not on values, so a depth is made by keeping the first layers. Names say what was made:
pi-L9/compiled/5 is 9 layers in the runtime `compiled` with 5 denoise steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lithe import registry, surgery
from lithe.families.base import Family
from lithe.runtimes.base import Runtime
from lithe.surgery import KeepLayers

Entry = tuple[str, Runtime]


def entries(
    policies: Sequence[str | Path | Family | Runtime],
    names: Sequence[str] | None,
    load: Callable[[str | Path], Family],
    layers: Sequence[int],
    runtimes: Sequence[str],
    steps: Sequence[int],
    seed: int,
) -> list[Entry]:
    """Every policy in every variant, each with a name of its own. `layers`, `steps`: () = as the policy is.

    Raises ValueError for a name given twice, a depth the policy does not have, or a runtime that is not there.
    """
    _check(policies, names, runtimes)
    found: list[Entry] = []
    for i, policy in enumerate(policies):
        if isinstance(policy, Runtime):
            found.append((_free(names[i] if names else _called(policy, policy.model), found), _as_asked(policy, steps)))
            continue
        model = policy if isinstance(policy, Family) else load(policy)
        base = names[i] if names else _called(policy, model, layered=bool(layers))
        for depth in layers or (None,):
            shallow = model if depth is None else _first(model, depth, base)
            for count in steps or (None,):
                for runtime in runtimes:
                    kind: Any = registry.get("runtimes", runtime)
                    told = [f"{base}-L{depth}" if depth else base]
                    told += [runtime] * (len(runtimes) > 1) + [str(count)] * (len(steps) > 1)
                    found.append((_free("/".join(told), found), kind(shallow, steps=count, seed=seed)))
    return found


def _check(policies: Sequence[Any], names: Sequence[str] | None, runtimes: Sequence[str]) -> None:
    if not policies or not runtimes:
        raise ValueError("bench needs at least one policy and one runtime")
    if names is not None and (len(names) != len(policies) or len(set(names)) != len(names)):
        raise ValueError(
            f"give every policy a name of its own: {len(names)} names ({', '.join(names)}) for {len(policies)}"
        )


def _as_asked(runtime: Runtime, steps: Sequence[int]) -> Runtime:
    if steps and list(steps) != [runtime.steps]:
        asked = ", ".join(map(str, steps))
        raise ValueError(
            f"a runtime attached with steps={runtime.steps} was given to a bench of steps={asked}: leave one out"
        )
    return runtime


def _called(policy: str | Path | Family | Runtime, model: Family, layered: bool = False) -> str:
    if isinstance(policy, (str, Path)):
        return Path(policy).name
    return model.name if layered else f"{model.name}-L{model.depth()}"


def _free(name: str, found: Sequence[Entry]) -> str:
    """The name, or with a number where it is taken."""
    taken = sum(other == name or other.startswith(f"{name}#") for other, _ in found)
    return f"{name}#{taken + 1}" if taken else name


def _first(model: Family, depth: int, name: str) -> Family:
    """Its first layers: as fast as any others. Raises ValueError."""
    if not 1 <= depth <= model.depth():
        raise ValueError(f"{name} has {model.depth()} layers: bench it with 1 to {model.depth()}, not {depth}")
    if model.router is not None:
        raise ValueError(f"{name} decides itself which layers run: leave layers out")
    return surgery.cut(model, [KeepLayers("trunk", tuple(range(depth)))]).eval()
