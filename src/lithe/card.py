"""The model card of a policy folder: README.md, made from what stands beside the weights and from a Result.

Nothing is typed by hand: what was not measured is not mentioned. Front matter follows the hub's model-card fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lithe import _home
from lithe._disk import write_atomically
from lithe.checkpoint import CARD, read_card, skeleton
from lithe.result import load

LEROBOT = (
    "LeRobot opens it too: `pip install lerobot_policy_lithe`, then `lerobot-eval --policy.path={} --env.type=...`."
)


def write(folder: str | Path, title: str | None = None, result: str | Path | None = None) -> Path:
    """Write README.md into a policy folder; `result` is an evaluation in which these very weights took part."""
    folder = Path(folder)
    about, model = read_card(folder), skeleton(folder)
    opens = all((folder / name).is_file() for name in _home.FILES)  # older folders are no policies of LeRobot
    hub = (
        ["library_name: lerobot", "tags: [robotics, lerobot, lithe, vla]"]
        if opens
        else ["tags: [robotics, lithe, vla]"]
    )
    lines = ["---", "license: apache-2.0", "pipeline_tag: robotics", *hub, "---", ""]
    lines += [f"# {title or folder.name}", "", *_facts(about, model), *_how(about)]
    if result:
        lines += _success(load(result), about["sha256"], Path(result).name)
    lines += [
        "",
        f'Load it with `lithe.load("{folder.name}")`; `{CARD}` is the machine-readable form of this page.',
        *([LEROBOT.format(folder.name)] if opens else []),
        "",
    ]
    path = folder / "README.md"
    write_atomically(path, "\n".join(lines).encode())
    return path


def _facts(about: dict[str, Any], model: Any) -> list[str]:
    spec, parts = model.spec, model.cost().parameters
    cut = [f"`{op['op']}` {op.get('layers', '')}" for op in about["history"]] or ["none"]
    sizes = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in parts.items())
    rows = {
        "family": f"{about['family']} ({about['config'].get('variant', '')})",
        "layers": str(model.depth()),
        "surgery": "; ".join(cut),
        "parameters": f"{sum(parts.values()) / 1e6:.2f} M ({sizes})",
        "cameras": ", ".join(spec.cameras),
        "actions": f"{spec.action_dim} numbers, {spec.horizon} a chunk, {spec.replan} of them executed",
        "denoise steps": str(spec.steps),
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""]


def _how(about: dict[str, Any]) -> list[str]:
    if "method" not in about:
        return []
    name, done, planned = about["method"]["name"], about.get("step"), about.get("steps")
    if not planned:  # a method that only cuts, or `lithe cut`
        sentence = f"Cut by `{name}` and not trained"
    else:
        interim = "" if done == planned else ": **an interim state, not the finished run**"
        sentence = f"Trained with `{name}`, {done} of {planned} steps{interim}"
    recipe = f" Recipe hash `{about['recipe_hash']}`." if "recipe_hash" in about else ""
    return [f"{sentence}.{recipe}", ""]


def _success(document: dict[str, Any], digest: str, name: str) -> list[str]:
    """Success by task. Raises ValueError when the Result is about other weights, or about more than being solved."""
    settings = document["settings"]
    if settings.get("execution") or settings.get("sim_options", {}).get("moving"):
        raise ValueError(
            f"{name} was played in real time or with a moving target, which is no plain success on "
            f"{document['name']}: give an evaluation without --realtime and --moving"
        )
    policies = settings["policies"]
    mine = [policy for policy, facts in policies.items() if digest in facts.values()]
    if not mine:
        raise ValueError(f"{name} is not an evaluation of these weights: evaluate this folder first")
    row = next(row for row in document["rows"] if row["policy"] == mine[0])
    cells = {"all": row, **row["tasks"]}
    lines = [
        f"## Success on {document['name']}",
        "",
        "| task | success, % | 95 % interval | episodes |",
        "|---|--:|--:|--:|",
    ]
    for task, found in cells.items():
        s = found["success"]
        lines.append(f"| {task} | {100 * s['rate']:.1f} | {100 * s['low']:.1f} to {100 * s['high']:.1f} | {s['n']} |")
    return [*lines, "", f"From `{name}`: commit {document.get('commit')}, {document['hardware']['cpu']}."]
