"""The report's sections on the policies themselves: which layers were cut, what that saves, how alike layers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lithe.report.cells import Grid, number
from lithe.report.layer_charts import cut_map, heat, lengths, ramp_key
from lithe.report.material import Material, by_policy
from lithe.report.page import Html, details, figure, table, tag, who
from lithe.report.scales import Scale, short, signed, times

Row = dict[str, Any]


def cut(material: Material) -> list[Html]:
    """Layers kept, then parameters and arithmetic per component."""
    return [*_layers(material), *_costs(material), *(part for d in material.of("explain") for part in _explained(d))]


def _layers(material: Material) -> list[Html]:
    """A map where the depth of the uncut policy is known, else the numbers in words."""
    known = histories(material)
    kept = {name: kept_layers(history) for name, history in known.items()}
    depth = _full_depth(material, known)
    parts: list[Html] = []
    for key in dict.fromkeys(key for found in kept.values() for key in found):
        stack, _, path = key.partition(": ")
        whole = list(range(depth or 0)) if stack == "trunk" else []
        shown = {name: found.get(key, found.get(stack, whole)) for name, found in kept.items()}
        rows = [(name, material.look(name), layers) for name, layers in shown.items() if layers]
        told = "; ".join(f"{name} keeps {', '.join(map(str, layers))}" for name, _, layers in rows)
        where = f" of {path or stack}" if key != "trunk" else ""
        if whole:
            said = f"Layers{where} that each policy keeps, by their number in the uncut policy. The others are gone."
            parts.append(figure(cut_map(rows, len(whole), f"Layers kept{where}: {told}"), caption=said))
        else:
            parts.append(tag("p", f"Layers kept{where}: {told}."))
    others = {name: [op for op in history if op.get("op") != "KeepLayers"] for name, history in known.items()}
    told = "; ".join(f"{name}: {', '.join(_spelled(op) for op in ops)}" for name, ops in others.items() if ops)
    return [*parts, *([tag("p", f"Other surgery: {told}.")] if told else [])]


def kept_layers(history: Sequence[Row]) -> dict[str, list[int]]:
    """Stack -> numbers of its layers before any cut; "stack: path" for a path that kept others than its stack."""
    found: dict[str, list[int]] = {}
    for op in history:
        if op.get("op") != "KeepLayers":
            continue
        stack, before = op["stack"], dict(found)
        apart = {f"{stack}: {path}": layers for path, layers in (op.get("by_path") or {}).items()}
        for key in dict.fromkeys((stack, *apart, *(key for key in found if key.startswith(f"{stack}: ")))):
            chosen = apart[key] if key in apart else op["layers"]
            base = before.get(key, before.get(stack))
            found[key] = [base[i] for i in chosen] if base else list(chosen)
    return found


def histories(material: Material) -> dict[str, list[Row]]:
    """The surgery of every policy of which it is known."""
    found = {
        name: entrant["history"]
        for document in material.of("eval")
        for name, entrant in document.get("settings", {}).get("policies", {}).items()
        if "history" in entrant
    }
    found |= {t.name: t.card["history"] for t in material.trainings if t.card and "history" in t.card}
    return {name: found[name] for name in material.names() if name in found}


def _full_depth(material: Material, histories: Mapping[str, Sequence[Row]]) -> int | None:
    """Trunk layers of an uncut policy; None where no Result tells."""
    uncut = [name for name, history in histories.items() if not kept_layers(history)]
    timed = [by_policy(d)[name].get("depth") for d in material.of("bench") for name in uncut if name in by_policy(d)]
    deepest = max((i + 1 for h in histories.values() for kept in kept_layers(h).values() for i in kept), default=0)
    known = [depth for depth in timed if depth]
    known += [len(d["rows"]) for d in material.of("profile") if len(d["rows"]) >= deepest] if not known else []
    return known[0] if known and known[0] >= deepest else None


def _spelled(op: Row) -> str:
    """An op in words; settings that are many stand in the provenance."""
    told = {key: value for key, value in op.items() if key != "op" and not isinstance(value, dict)}
    return f"{op.get('op')} " + ", ".join(f"{key} {value}" for key, value in told.items())


def _costs(material: Material) -> list[Html]:
    """Parameters, arithmetic and traffic of every timed policy; they do not depend on the machine."""
    for document in material.of("bench"):
        rows = by_policy(document)
        bill = _bill({name: who(name, material.look(name)) for name in rows}, list(rows.values()))
        if bill:
            said = (
                "Parameters, and the arithmetic and memory traffic of one chunk at batch 1, as the models count them."
            )
            return [figure(bill, caption=said)]
    return []


def _bill(heads: Mapping[str, str], rows: Sequence[Row]) -> Html | None:
    """A column a policy, a line a component; in totals also how many times less than the first policy."""
    lines = []
    for key, called, unit, scale in (
        ("parameters", "parameters", "M", 1e6),
        ("flops", "arithmetic", "GFLOP", 1e9),
        ("bytes", "memory traffic", "MB", 1e6),
    ):
        components = list(dict.fromkeys(component for row in rows for component in row.get(key, {})))
        for component in components:
            cells = [short(row[key][component] / scale) if component in row.get(key, {}) else "–" for row in rows]
            lines.append([called if component == components[0] else "", component, unit, *cells])
        if components:
            totals = [sum(row.get(key, {}).values()) for row in rows]
            less = [f" ({times(totals[0] / t)} less)" if t and t != totals[0] else "" for t in totals]
            bold = [tag("strong", short(t / scale) + more) for t, more in zip(totals, less, strict=True)]
            lines.append(["", tag("strong", "all"), unit, *bold])
    return table(["", "component", "unit", *heads.values()], lines, "Size and arithmetic", words=3) if lines else None


def _explained(document: Row) -> list[Html]:
    """What `lithe explain` counted, before any weight was touched."""
    rows, settings = document["rows"], document.get("settings", {})
    told = [str(document.get("name", "a policy")), *(str(settings[k]) for k in ("method", "paper") if k in settings)]
    layers = rows[-1].get("layers", {}) if rows else {}
    kept = "; ".join(f"{path}: {', '.join(map(str, numbers))}" for path, numbers in layers.items())
    bill = _bill({str(row.get("policy", i)): str(row.get("policy", i)) for i, row in enumerate(rows)}, rows)
    parts = [tag("h3", f"Counted beforehand: {', '.join(told)}")]
    return parts + [part for part in (tag("p", f"Layers left: {kept}.") if kept else None, bill) if part]


def similarity(material: Material) -> list[Html]:
    """Heat map over denoise time beside what skipping each layer does."""
    parts = []
    for document in material.of("profile"):
        parts += [tag("h3", str(document["name"]))] if len(material.of("profile")) > 1 else []
        parts += _alike(document)
    return parts


def _alike(document: Row) -> list[Html]:
    """The panels of one profile, a row a layer in each, and the numbers folded away."""
    alike, hurt, settings = (
        document.get("similarity", {}),
        document.get("sensitivity", {}),
        document.get("settings", {}),
    )
    drawings, keys = [], []
    cosines = [v for row in alike.get("suffix", []) for v in row] + list(alike.get("prefix", []))
    if cosines:
        x = Scale(min(min(cosines), max(cosines) - 1e-3), max(cosines))
        keys = [ramp_key(x, lambda v: f"{v:.3f}", "cosine of the stream before and after a layer")]
        drawings += _streams(alike, x)
    for key, head, label in (
        ("actions", "when skipped: actions", "relative change"),
        ("task_loss", "when skipped: loss", "added task loss"),
    ):
        if values := hurt.get(key):
            drawn = lengths(values, _numbers(values), Scale.over(values, zero=True), label, f"{head}: {_told(values)}")
            drawings.append(tag("div", tag("h4", head), drawn, class_="middling"))
    if not drawings:
        return []
    fed = f"{settings.get('samples', '?')} samples of {settings.get('inputs', 'unnamed inputs')}"
    policy = next((str(row["policy"]) for row in document["rows"] if "policy" in row), "The policy")
    caption = f"{policy}, {fed}; one row a layer. {_reading(alike, hurt)}"
    notes = [tag("p", str(text), class_="under") for text in document.get("notes", [])]
    return [figure(*keys, tag("div", *drawings, class_="panels"), caption=caption), _by_layer(document["rows"], notes)]


def _streams(alike: Row, x: Scale) -> list[Html]:
    """Heat maps of the trunk, which does not know the denoise time, and of the expert, which does."""
    found = []
    if trunk := alike.get("prefix"):
        drawn = heat([[v] for v in trunk], _numbers(trunk), ["all τ"], x, "", f"Cosine of trunk layers: {_told(trunk)}")
        found.append(tag("div", tag("h4", "trunk"), drawn, class_="thin"))
    if expert := alike.get("suffix"):
        taus = [f"{1 - time:.2g}" for time in alike["times"]]
        alt = f"Cosine of action-expert layers over denoise time, mean: {_told(_means(expert))}"
        drawn = heat(expert, _numbers(expert), taus, x, "τ, from noise (0) to action (1)", alt)
        found.append(tag("div", tag("h4", "action expert over denoise time"), drawn, class_="broad"))
    return found


def _reading(alike: Row, hurt: Row) -> str:
    """What the figure says: whether the layer that changes least is also the one that is missed least."""
    if not hurt.get("actions") or not alike.get("suffix"):
        return "Bright layers change their stream little."
    if min(hurt["actions"]) == max(hurt["actions"]):
        return "No layer is missed more than another."
    means, changes = _means(alike["suffix"]), [f"{100 * change:.3g} %" for change in hurt["actions"]]
    idle, missed, least = int(np.argmax(means)), int(np.argmax(hurt["actions"])), int(np.argmin(hurt["actions"]))
    said = f"Layer {idle} changes the expert's stream least (mean cosine {means[idle]:.3f})"
    if idle == least:
        said += f", and its absence moves the actions least, by {changes[idle]}."
    else:
        said += f"; skipping it moves the actions by {changes[idle]}, skipping layer {least} by only {changes[least]}: "
        said += "alike is not the same as dispensable."
    return f"{said} Layer {missed} is missed most ({changes[missed]})."


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(row) / len(row) for row in rows]


def _numbers(layers: Sequence[Any]) -> list[str]:
    return [str(i) for i in range(len(layers))]


def _told(values: Sequence[float]) -> str:
    return ", ".join(f"layer {i} {value:.3g}" for i, value in enumerate(values))


def _by_layer(rows: Sequence[Row], notes: Sequence[Html]) -> Html:
    """The numbers of the heat map, a row a layer."""
    grid = Grid({str(row.get("layer", i)): str(row.get("layer", i)) for i, row in enumerate(rows)})
    for i, row in enumerate(rows):
        name, alike, hurt = str(row.get("layer", i)), row.get("similarity", {}), row.get("sensitivity", {})
        for head, value in (
            ("trunk cosine", alike.get("prefix")),
            ("expert cosine, mean", alike.get("suffix")),
            ("lowest", alike.get("suffix_low")),
            ("highest", alike.get("suffix_high")),
        ):
            grid.put(head, name, None if value is None else f"{value:.4f}")
        for head, key in (("skipped: actions", "actions"), ("velocity", "velocity")):
            grid.put(head, name, number(hurt.get(key)))
        grid.put("task loss", name, None if "task_loss" not in hurt else signed(round(hurt["task_loss"], 4)))
    return details("The numbers, layer by layer", grid.table("Similarity and sensitivity by layer", "layer"), *notes)
