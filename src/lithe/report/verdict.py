"""The report's first words, made from the Results alone: what was kept, what was lost, how much faster, how sure.

An interval that holds a loss is called that, whatever its middle says; a time measured beside other work is not quoted
without saying so; and where nothing was measured, this says that nothing was measured.
"""

from __future__ import annotations

from typing import Any

from lithe.report.material import Material, by_policy, reference
from lithe.report.page import Html, join, note, tag
from lithe.report.scales import brackets, factor, percent, points, short, times

WIDE = 0.2  # an interval of so many points decides nothing
MOST = 3  # policies told about in words; the rest is in the table below them


def verdict(material: Material) -> list[Html]:
    """The paragraphs above the first section."""
    documents = material.of("eval") + material.of("bench")
    references = {reference(document) for document in documents}
    told = [name for name in material.names() if any(name in by_policy(document) for document in documents)]
    students = [name for name in told if name not in references] or told
    said = [join(*_about(name, material), by=" ") for name in students[:MOST]]
    said = [tag("p", text, class_="verdict") for text in said if text]
    if not said:
        said = [
            tag(
                "p",
                "Among these Results is no closed-loop evaluation and no timing: nothing on this page says how "
                "well a policy acts, or how fast it is.",
                class_="verdict",
            )
        ]
    if len(students) > MOST:
        more = len(students) - MOST
        said.append(tag("p", f"{more} more {'policy is' if more == 1 else 'policies are'} in the table."))
    return said + cautions(material)


def cautions(material: Material) -> list[Html]:
    """What must be known before any number on the page is believed."""
    found = []
    for document in material.of("bench"):
        if document.get("settings", {}).get("quiet") is False:
            found.append(
                note(
                    tag("strong", "Timed on a busy machine. "),
                    _busy(document.get("settings", {})),
                    " The ratios between policies are a guide, the milliseconds are not to be quoted.",
                )
            )
    for document in material.of("profile"):
        if document.get("settings", {}).get("inputs") == "random":
            found.append(
                note(
                    tag("strong", "Profiled on random inputs. "),
                    "The heat map shows that the analysis runs, "
                    "and nothing about the policy: give lithe profile some data.",
                )
            )
    for document in material.of("eval"):
        aside = material.aside(document)
        for name, row in by_policy(document).items():
            pairs = row.get("paired", {})
            if pairs.get("same_start", pairs.get("n")) != pairs.get("n"):
                found.append(
                    note(
                        tag("strong", "Not all pairs began alike. "),
                        f"{name}{f' on {aside}' if aside else ''}: {pairs['same_start']} of "
                        f"{pairs['n']} episodes showed both policies bit-identical first observations.",
                    )
                )
    return found


def _about(name: str, material: Material) -> list[Html]:
    """The sentences on one policy."""
    evaluations, benches = material.of("eval"), material.of("bench")
    said = []
    for document in evaluations:
        rows, aside = by_policy(document), material.aside(document)
        if "success" in rows.get(name, {}):
            said.append(_success(name, rows, f" on {aside}" if aside else ""))
    for document in benches:
        rows = by_policy(document)
        if "p50" in rows.get(name, {}).get("latency_ms", {}):
            where = [f"on {machine(document)}"] if len(benches) > 1 else []
            where += ["timed on a busy machine"] if document.get("settings", {}).get("quiet") is False else []
            begin = Html("Its median latency") if said else join("The median latency of ", tag("strong", name))
            said.append(join(begin, _speed(name, rows), f" ({', '.join(where)})." if where else "."))
    return said


def _success(name: str, rows: dict[str, Any], where: str) -> Html:
    own, pairs = rows[name]["success"], rows[name].get("paired")
    theirs = rows.get(pairs["against"], {}).get("success") if pairs else None
    told = f"{_rate(own)} of {own['n']} episodes{where}"
    if pairs is None or theirs is None:
        return join(tag("strong", name), f" solves {told}.")
    begin = join(tag("strong", name), f" solves {told} against {_rate(theirs)}")
    if theirs["rate"] > 0:
        share = own["rate"] / theirs["rate"]
        kept = f"{'keeps' if share <= 1 else 'reaches'} {percent(share)}\u00a0%"
        begin = join(
            tag("strong", name), " ", kept, f" of the success of {pairs['against']}: {told} against {_rate(theirs)}"
        )
    bounds = f"{points(pairs['difference'])} points {brackets(points(pairs['low']), points(pairs['high']))}"
    meaning = _meaning(pairs["low"], pairs["high"])
    return join(begin, ". On the same initial states the difference is ", tag("strong", bounds), f": {meaning}.")


def _meaning(low: float, high: float) -> str:
    if high < 0:
        return "a loss that chance does not explain"
    if low > 0:
        return "a gain that chance does not explain"
    if low == 0:
        return "no loss was seen"
    if high - low > WIDE:
        told = f"anything from a loss of {percent(-low)} points to a gain of {percent(high)} agrees with them"
        return f"these episodes are too few to tell, {told}"
    return f"chance alone may explain it, and a loss of up to {percent(-low)} points is not excluded"


def _speed(name: str, rows: dict[str, Any]) -> Html:
    """What follows the words "median latency"."""
    ratio, own = rows[name].get("ratio", {}), rows[name]["latency_ms"]["p50"]
    other = rows.get(ratio.get("against"), {}).get("latency_ms", {}).get("p50")
    if other is None or ratio["against"] == name:
        return join(f" is {short(own)} ms a chunk")
    against = f"{short(own)} ms a chunk against {short(other)} ms of {ratio['against']}"
    if ratio["high"] < 1:
        bounds = f"{times(1 / ratio['p50'])} {brackets(factor(1 / ratio['high']), factor(1 / ratio['low']))} higher"
    else:
        bounds = f"{times(ratio['p50'])} {brackets(factor(ratio['low']), factor(ratio['high']))} lower"
    unsure = ", so that no difference can be told" if ratio["low"] <= 1 <= ratio["high"] else ""
    return join(" is ", tag("strong", bounds), f"{unsure}: {against}")


def machine(document: dict[str, Any]) -> str:
    """Where a Result was measured: the GPU when it was used, else the processor."""
    facts, device = document.get("hardware", {}), str(document.get("settings", {}).get("device", ""))
    name = facts.get("gpu") if device.startswith("cuda") else facts.get("cpu")
    return str(name or device or "an unnamed machine")


def _rate(success: dict[str, Any]) -> str:
    return f"{percent(success['rate'])}\u00a0% {brackets(percent(success['low']), percent(success['high']))}"


def _busy(settings: dict[str, Any]) -> str:
    if "busy_cores_elsewhere" in settings:
        return f"Other processes used {short(settings['busy_cores_elsewhere'])} cores meanwhile."
    return f"The load was {short(settings.get('load_average', 0.0))}."
