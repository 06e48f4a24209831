"""What `lithe bench` makes of the policies it is given: an entry for every depth, runtime and number of steps.

Latency depends on shapes and not on values, so a depth is made by keeping the first layers. Names say what was made:
pi-L9/compiled/5 is 9 layers in the runtime `compiled` with 5 denoise steps, pi-L9/lerobot/5 its peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lithe import registry, surgery
from lithe.bench import peers as others
from lithe.families.base import Family
from lithe.measure import timed
from lithe.runtimes.base import Runtime
from lithe.surgery import KeepLayers


@dataclass(frozen=True)
class Entry:
    """What takes part in a bench. attach_s: seconds that attaching took, None where it was attached before. beside: of
    a peer, the entry whose weights it holds."""

    name: str
    runtime: Runtime
    attach_s: float | None = None
    beside: str | None = None


def entries(
    policies: Sequence[str | Path | Family | Runtime],
    names: Sequence[str] | None,
    load: Callable[[str | Path], Family],
    layers: Sequence[int],
    runtimes: Sequence[str],
    steps: Sequence[int],
    seed: int,
    peers: Sequence[str] = (),
) -> list[Entry]:
    """Every policy in every variant, each with a name of its own. `layers`, `steps`: () = as the policy is. peers:
    other implementations beside every variant.

    Raises ValueError for a name given twice, a depth the policy does not have, a runtime or peer that is not there, or
    a peer that cannot be what the policy is.
    """
    _check(policies, names, runtimes, peers)
    found: list[Entry] = []
    for i, policy in enumerate(policies):
        if isinstance(policy, Runtime):
            base = names[i] if names else _called(policy, policy.model)
            found.append(Entry(_free(base, found), _as_asked(policy, steps)))
            _stand_beside(found, [found[-1].name], policy.model, policy.steps, peers, seed, found[-1].name)
            continue
        model = policy if isinstance(policy, Family) else load(policy)
        base = names[i] if names else _called(policy, model, layered=bool(layers))
        for depth in layers or (None,):
            shallow, title = (model, base) if depth is None else (_first(model, depth, base), f"{base}-L{depth}")
            for count in steps or (None,):
                counted, place = [str(count)] * (len(steps) > 1), len(found)
                for runtime in runtimes:
                    kind: Any = registry.get("runtimes", runtime)
                    name = _free("/".join([title, *[runtime] * (len(runtimes) > 1), *counted]), found)
                    found.append(Entry(name, *timed(partial(kind, shallow, count, seed), _place(shallow))))
                _stand_beside(found, [title, *counted], shallow, count, peers, seed, found[place].name)
    return found


def _stand_beside(
    found: list[Entry], told: list[str], model: Family, steps: int | None, peers: Sequence[str], seed: int, beside: str
) -> None:
    """Add the peers of the policy called `beside`, each with the weights of its model."""
    for spelled in peers:
        name = "/".join([told[0], spelled, *told[1:]])
        made = timed(partial(others.build, spelled, model, steps, seed), _place(model))
        found.append(Entry(_free(name, found), *made, beside=beside))


def _place(model: Family) -> torch.device:
    return next(model.parameters()).device


def _check(policies: Sequence[Any], names: Sequence[str] | None, runtimes: Sequence[str], peers: Sequence[str]) -> None:
    for spelled in peers:
        others.check_name(spelled)
    if len(set(peers)) < len(peers):
        raise ValueError(f"give every peer once, not {', '.join(peers)}")
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
    taken = sum(entry.name == name or entry.name.startswith(f"{name}#") for entry in found)
    return f"{name}#{taken + 1}" if taken else name


def _first(model: Family, depth: int, name: str) -> Family:
    """Its first layers: as fast as any others. Raises ValueError."""
    if not 1 <= depth <= model.depth():
        raise ValueError(f"{name} has {model.depth()} layers: bench it with 1 to {model.depth()}, not {depth}")
    if model.router is not None:
        raise ValueError(f"{name} decides itself which layers run: leave layers out")
    if depth == model.depth():
        return model
    return surgery.cut(model, [KeepLayers("trunk", tuple(range(depth)))]).eval()
