"""The policies that take part in an evaluation: their names, and whether they can act in this sim at all.

Builds no policy, that is up to the workers. Of weights it reads the digest that lithe wrote beside them; those of a
folder that another project saved are digested here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lithe._disk import sha256
from lithe.registry import suggestion

if TYPE_CHECKING:
    from lithe.evaluate.realtime import Timing
    from lithe.families.base import Family
    from lithe.sims.base import Sim


def folders(policies: Sequence[str | Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Name -> folder, downloaded if need be. A name is given, or written "name=folder", or the folder's own."""
    from lithe.source import resolve

    if not policies or (names is not None and len(names) != len(policies)):
        raise ValueError(
            f"{len(policies)} policies with {len(names or ())} names: give at least one policy, and all a name or none"
        )
    found: dict[str, Path] = {}
    for i, policy in enumerate(policies):
        name, equals, folder = str(policy).partition("=")
        if not equals or Path(policy).exists():
            name, folder = Path(policy).absolute().name, str(policy)
        name = names[i] if names is not None else name
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"{name!r} cannot name a policy: use letters, digits, '_', '-', '+' and '.'")
        if name in found:
            raise ValueError(f"two policies are called {name!r}: name them apart with name=folder")
        found[name] = resolve(folder).folder
    return found


def reference(against: str | None, names: list[str]) -> str:
    """The policy that the others are compared with."""
    if against is not None and against not in names:
        raise ValueError(
            f"against={against!r} is not among the policies{suggestion(against, names)}; there are {', '.join(names)}"
        )
    return against or names[0]


def entrant(
    name: str, folder: Path, sim: type[Sim], terms: dict[str, Any], timing: Timing | None = None
) -> dict[str, Any]:
    """What the Result says about a policy. timing: in real time. Raises ValueError when it cannot act in this sim."""
    from lithe import api

    model = api.skeleton(folder)
    spec = model.spec
    for camera in spec.cameras:
        if camera not in sim.cameras:
            raise ValueError(
                f"policy {name!r} looks through camera {camera!r}; {sim.name} has {', '.join(sim.cameras)}"
            )
    for what, wants, has in (("state", spec.state_dim, sim.state_dim), ("action", spec.action_dim, sim.action_dim)):
        if wants != has:
            raise ValueError(
                f"policy {name!r} is for {wants} {what} dimensions, {sim.name} has {has}: it was trained elsewhere"
            )
    replan = terms["replan"] or spec.replan
    if replan > spec.horizon:
        raise ValueError(f"replan={replan} is more than the {spec.horizon} actions of a chunk of policy {name!r}")
    if timing is not None:
        from lithe.evaluate.realtime import check_policy

        check_policy(model, timing, terms["execution"], replan, terms["runtime"], terms["horizon"], terms["steps"])
        terms = {**terms, "delay": timing.delay}
    policy, beside = _identity(folder, model)
    identity = json.dumps([policy, beside, terms], sort_keys=True)
    facts = {
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "weights": policy["sha256"],
        "family": policy["family"],
        "history": policy["history"],
        "chunk": spec.horizon,
        "replan": replan,
        "steps": terms["steps"] or policy["config"].get("steps"),  # denoise steps, of families that denoise
        **({"delay": timing.delay, "latency_ms": timing.latency_ms} if timing else {}),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _identity(folder: Path, model: Family) -> tuple[dict[str, Any], dict[str, str]]:
    """What a policy is, and the digests of the files beside its weights.

    A card tells for a policy that lithe saved; what was laid beside it later, such as its evaluation, is no part of it.
    Else it is what lithe would save of it, tokenizer and statistics included wherever they came from, and all JSON and
    processor states of the folder.
    """
    from lithe import _home, checkpoint
    from lithe.source import weights

    if (folder / checkpoint.CARD).is_file():
        card = checkpoint.read_card(folder)
        other = {checkpoint.CARD, *_home.FILES}  # lithe does not read LeRobot's files
        files = checkpoint.listed(card) or {path.name: sha256(path) for path in folder.glob("*.json")}
        beside = {name: files[name] for name in sorted(files) if name not in other}
        return {key: card[key] for key in ("family", "config", "history", "sha256")}, beside
    path = weights(folder)
    policy = {"family": model.name, "config": model.describe(), "history": model.history, "sha256": sha256(path)}
    found = [p for kind in ("*.json", "*.safetensors") for p in sorted(folder.rglob(kind)) if p != path]
    beside = {p.relative_to(folder).as_posix(): sha256(p) for p in found}
    with TemporaryDirectory(prefix="lithe-eval-") as home:
        model.save_extras(Path(home))
        beside |= {f"lithe/{p.name}": sha256(p) for p in sorted(Path(home).iterdir())}
    return policy, beside
