"""What a report is made of: Results, run folders and film strips, read and checked; and which policy looks how.

A policy has one colour and one mark on the whole page, by its name: the reference first, then in the order of the
inputs. A run folder counts as the policy that an evaluation played with its weights, else by the folder's own name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lithe import result
from lithe.report.strips import INDEX, Strip, read

ACCEPTED = ("eval", "bench", "profile", "train", "explain")
ADVICE = (
    f"a report takes Result files of the kinds {', '.join(ACCEPTED)} (written by lithe eval, bench, profile, train and "
    "distill), run folders (recipe.json with metrics.jsonl), and folders of film strips"
)


@dataclass(frozen=True)
class Source:
    """One Result and the file it came from."""

    path: Path
    document: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """A run folder: what was asked, what was logged, and the policy it made."""

    name: str
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    card: dict[str, Any] | None = None


@dataclass
class Material:
    """Everything that was given, by kind."""

    sources: list[Source] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The Results of one kind; evaluations only where the simulator waited for the policy."""
        found = [source.document for source in self.sources if source.document["kind"] == kind]
        return [document for document in found if not in_real_time(document)]

    def realtime(self) -> list[dict[str, Any]]:
        """Evaluations in which the simulator went on while the policy thought."""
        return [source.document for source in self.sources if in_real_time(source.document)]

    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluations, in the order they were given."""
        return [source.document for source in self.sources if source.document["kind"] == "eval"]

    def title(self, document: dict[str, Any]) -> str:
        """What an evaluation is called on the whole page; no other one is called the same."""
        alike = [s for s in self.sources if s.document["kind"] == "eval" and _called(s.document) == _called(document)]
        if len(alike) < 2:
            return _called(document)
        files = [f"{s.path.resolve().parent.name}/{s.path.name}" for s in alike]
        place = next(i for i, source in enumerate(alike) if source.document is document)
        again = files[:place].count(files[place])
        return f"{_called(document)}, {files[place]}{f' ({again + 1})' if again else ''}"

    def aside(self, document: dict[str, Any]) -> str:
        """Its title where that has to be said: beside others, or where something moves. Else nothing."""
        plain = len(self.of("eval")) == 1 and _called(document) == str(document.get("name"))
        return "" if plain else self.title(document)

    def names(self) -> list[str]:
        """Every policy that is told apart by colour, whatever its latency."""
        found = [name for document in self.of("eval") + self.of("bench") for name in policies(document)]
        found += [base(row) for document in self.realtime() for row in by_policy(document).values()]
        found += [strip.policy for strip in self.strips] + [training.name for training in self.trainings]
        return list(dict.fromkeys(found))

    def look(self, name: str) -> int:
        """Which colour and mark a policy has."""
        return self.names().index(name)


def gather(paths: Sequence[Path]) -> Material:
    """Reads every input. Raises ValueError, saying what is accepted, for one that nothing can be made of."""
    if not paths:
        raise ValueError(f"nothing to report on: {ADVICE}")
    material = Material()
    for path in dict.fromkeys(Path(p) for p in paths):
        if not path.is_dir():
            material.sources.append(_result(path))
        elif (path / INDEX).is_file():
            material.strips += read(path)
        elif (path / "recipe.json").is_file():
            material.trainings.append(_training(path))
            if (path / "result.json").is_file():
                material.sources.append(_result(path / "result.json"))
        else:
            raise ValueError(f"{path} has neither recipe.json nor {INDEX}: {ADVICE}")
    _find_strips(material)
    _recognise(material)
    return material


def policies(document: dict[str, Any]) -> list[str]:
    """The policies in a Result, the reference first."""
    names = [str(row["policy"]) for row in document["rows"] if "policy" in row]
    first = reference(document)
    return sorted(names, key=lambda name: name != first)


def reference(document: dict[str, Any]) -> str | None:
    """Whom the others in a Result are compared with; None where nobody is."""
    told = [document.get("settings", {}).get("against")]
    told += [row.get(key, {}).get("against") for row in document["rows"] for key in ("paired", "ratio")]
    return next((str(name) for name in told if name is not None), None)


def by_policy(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a Result by their policy, the reference first."""
    rows = {str(row["policy"]): row for row in document["rows"] if "policy" in row}
    return {name: rows[name] for name in policies(document)}


def in_real_time(document: dict[str, Any]) -> bool:
    """Whether rows are policies at a latency."""
    return document["kind"] == "eval" and any("realtime" in row for row in document["rows"])


def _called(document: dict[str, Any]) -> str:
    """The benchmark, what the robot does while its policy thinks, and whether something moves: each is another test."""
    settings = document.get("settings", {})
    moving = settings.get("sim_options", {}).get("moving")
    told = [str(document.get("name")), settings.get("execution"), moving and f"moving target ({moving})"]
    return ", ".join(part for part in told if part)


def base(row: Mapping[str, Any]) -> str:
    """The policy of a row, without its latency."""
    return str(row.get("realtime", {}).get("policy", row["policy"]))


def _result(path: Path) -> Source:
    try:
        document = result.load(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a Result but binary: {ADVICE}") from error
    except ValueError as error:
        raise ValueError(f"{error}. {ADVICE[0].upper()}{ADVICE[1:]}") from error
    if document["kind"] not in ACCEPTED:
        raise ValueError(f"{path} is a Result of kind {document['kind']!r}, which has no place on the page: {ADVICE}")
    rows = document["rows"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is damaged: its rows are not a list of objects; make it again")
    return Source(path, document)


def _training(folder: Path) -> Training:
    name = folder.resolve().name
    try:
        recipe = json.loads((folder / "recipe.json").read_text())
        path = folder / "student" / "student.json"
        card = json.loads(path.read_text()) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder} is damaged ({error}): train again, or leave it out") from error
    metrics = list(_lines(folder / "metrics.jsonl"))
    if not metrics and card is None:
        raise ValueError(f"{folder} is a run that has not logged a step yet: {ADVICE}")
    return Training(name, recipe, metrics, card)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete line; the last one of a run that is going on, or was killed, may be torn."""
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            return


def _find_strips(material: Material) -> None:
    """Strips that stand beside an evaluation's Result come with it; strips of other weights than those are refused."""
    evaluations = [source for source in material.sources if source.document["kind"] == "eval"]
    for source in evaluations:
        folder = source.path.parent / "strips"
        if (folder / INDEX).is_file() and not any(
            strip.folder.resolve() == folder.resolve() for strip in material.strips
        ):
            material.strips += read(folder)
    played = [source.document.get("settings", {}).get("policies", {}) for source in evaluations]
    for strip in material.strips:
        weights = {entrants[strip.policy].get("weights") for entrants in played if strip.policy in entrants}
        if weights and strip.weights not in weights:
            raise ValueError(
                f"the film strips in {strip.folder} show other weights of {strip.policy!r} than the evaluation: delete "
                "that folder, or make the strips again"
            )


def _recognise(material: Material) -> None:
    """Gives a run the name under which its weights were evaluated: its own, where several had them."""
    bases = {name: base(row) for document in material.evaluations() for name, row in by_policy(document).items()}
    names: dict[str, list[str]] = {}
    for document in material.evaluations():
        for name, entrant in document.get("settings", {}).get("policies", {}).items():
            names.setdefault(entrant.get("weights", ""), []).append(bases.get(name, name))
    material.trainings = [replace(run, name=_known_as(run, names)) for run in material.trainings]


def _known_as(run: Training, names: Mapping[str, Sequence[str]]) -> str:
    """Ablations that act only when a policy runs, and cuts that came out alike, share their weights with others."""
    known = names.get(run.card["sha256"], []) if run.card and "sha256" in run.card else []
    return run.name if run.name in known or not known else known[0]
