"""The command line: one verb per function of the same name, no logic. `lithe <verb> --help` teaches each one.

Exit codes: 0 done, 1 something outside went wrong (disk, loss) or a gate of `reproduce` is not met, 2 the request
cannot be met as written or `check` found an error, 130 stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Make Vision-Language-Action policies light on their feet.\n\nA teacher goes in; a student of a fraction of "
    "its layers comes out, with the proof beside it. Start with `lithe demo`.",
)

Policies = Annotated[
    list[str],
    typer.Argument(
        help="Policy folders of lithe, LeRobot or openpi, or hub ids, each optionally as name=folder. The first is the "
        "reference."
    ),
]
Method = Annotated[str, typer.Argument(help="Method, e.g. shallow_pi; `lithe list methods` shows all.")]
Knobs = Annotated[list[str] | None, typer.Argument(help="Knobs of the method, e.g. keep=6.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Out = Annotated[Path | None, typer.Option(help="Where to write.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. method.keep=6 train.steps=1000.")]


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="families, methods, runtimes, data, sims or recipes")] = "methods",
) -> None:
    """Show what there is to choose from."""
    from lithe.listing import listing

    typer.echo(listing(kind))


@app.command()
def collect(
    sim: Annotated[str, typer.Argument(help="Simulator with scripted experts.")] = "metaworld",
    out: Annotated[Path, typer.Option(help="Folder of the new LeRobotDataset v3.")] = Path("data/metaworld-mini"),
    tasks: Annotated[str | None, typer.Option(help="Comma-separated; default: the simulator's own list.")] = None,
    episodes: Annotated[int, typer.Option(help="Successful episodes a task.")] = 100,
    noise: Annotated[
        float, typer.Option(help="Largest standard deviation of the noise added to executed actions.")
    ] = 0.3,
    policy: Annotated[
        Path | None,
        typer.Option(help="A policy that acts first in every episode: demonstrations from where IT gets lost."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Number of this collection; no two share an initial state.")] = 0,
    processes: Annotated[int | None, typer.Option(help="Default: one a core.")] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
) -> None:
    """Record demonstrations of scripted experts as a LeRobotDataset v3.

    Noise is added to what is executed while the expert's clean action is recorded: that teaches recovery. A killed
    collection goes on when the same command is given again.
    """
    from lithe.collect import collect as run

    _finish(
        run(
            sim,
            out,
            tasks=_split(tasks),
            episodes=episodes,
            noise=noise,
            seed=seed,
            processes=processes,
            size=size,
            policy=policy,
        )
    )


@app.command()
def train(recipe: Path, overrides: Overrides = None, out: Out = None) -> None:
    """Train a teacher from random weights, as a recipe says. The same command resumes a stopped run."""
    _train(recipe, overrides, out, scratch=True)


@app.command()
def distill(recipe: Path, overrides: Overrides = None, out: Out = None) -> None:
    """Cut a student out of a teacher and train it, as a recipe says. The same command resumes a stopped run."""
    _train(recipe, overrides, out, scratch=False)


@app.command("eval")
def eval_(
    policies: Policies,
    sim: Annotated[str, typer.Option(help="Simulator to act in.")] = "metaworld",
    tasks: Annotated[str | None, typer.Option(help="Comma-separated; default: the simulator's own list.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes a task, the same initial states for every policy.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoise steps; default: the policy's own.")] = None,
    replan: Annotated[
        int | None, typer.Option(help="Actions executed of each chunk; default: the policy's own.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Default: one a core.")] = None,
    videos: Annotated[int, typer.Option(help="Record this many episodes a task and policy.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the ledger; the same command resumes.")] = Path("runs/eval"),
    against: Annotated[
        str | None,
        typer.Option(help="Policy the others are paired with; default: the first, in real time at its least."),
    ] = None,
    realtime: Annotated[
        str | None,
        typer.Option(
            "--realtime",
            "--execution",
            help="Let the simulator go on while the policy thinks. sync: the robot stands still meanwhile; async: it "
            "executes the rest of its old actions; rtc: the same, and new actions go on where the old ones lead.",
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="How long they think, in ms: 120, or 0,50,100 for a curve, or teacher=120,student=50, or a Result of "
            "lithe bench, runs/bench.json, for what each took there (one that decides how many layers run: ms)."
        ),
    ] = None,
    moving: Annotated[
        str | None,
        typer.Option(help="Move the target in every episode, by a jump or a drift, and tell how fast policies react."),
    ] = None,
) -> None:
    """Act in closed loop and compare policies on the same initial states.

    Without --realtime the simulator waits for the policy, however slow it is. With it, a latency becomes whole control
    steps: nothing is timed, and the outcome is the same on every machine. A policy is evaluated once for each latency,
    as teacher@50ms.

    Example: `lithe eval teacher=zoo/pi05-mini-metaworld student=runs/l4/student --realtime async --latency 0,25,50,75
    --moving jump` draws what latency costs when something moves; `lithe report` makes the curves of it.
    """
    from lithe.evaluate import evaluate, table

    names, folders = _named(policies)
    document = evaluate(
        folders,
        sim=sim,
        tasks=_split(tasks),
        episodes=episodes,
        seed=seed,
        processes=processes,
        out=out,
        videos=videos,
        steps=steps,
        replan=replan,
        names=names,
        against=against,
        execution=realtime,
        latency=latency,
        sim_options={"moving": moving} if moving else None,
    )
    _finish(document, table(document), out / "eval.json")


@app.command()
def bench(
    policies: Policies,
    runs: Annotated[int, typer.Option(help="Timed chunks a policy.")] = 100,
    warmup: Annotated[int, typer.Option(help="Untimed chunks a policy before.")] = 20,
    steps: Annotated[str | None, typer.Option(help="Denoise steps, such as 10,5,1; default: the policy's own.")] = None,
    views: Annotated[int | None, typer.Option(help="Live cameras; default: all the policy has.")] = None,
    runtimes: Annotated[str, typer.Option(help="How to run them, such as eager,packed,compiled.")] = "eager",
    layers: Annotated[str | None, typer.Option(help="Depths to cut them to, such as 18,9,6.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Policy the ratios refer to; default: the first.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; default: as they are.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Random weights of this size: the policies are families then, as in bench pi05 --preset full."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="LeRobotDataset whose episodes all policies see; default: one random observation."),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Other implementations with the same weights beside each, such as lerobot,lerobot-compiled."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to load them, such as cuda; default: the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as `lithe.load` does.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the Result.")] = Path("runs/bench.json"),
) -> None:
    """Time policies, interleaved in one run, split into vision, prefix and denoise, beside this machine's floor.

    Policies that decide themselves which layers run need --data: their latency depends on what they see. Peers are
    compared with the policy's own actions first, and say in their rows what is equal and what is not.
    """
    from lithe.api import data as open_data
    from lithe.bench import bench as run
    from lithe.bench import table

    names, folders = _named(policies)
    document = run(
        [f"{name}:{preset}" for name in folders] if preset else folders,
        names=names,
        runs=runs,
        warmup=warmup,
        steps=_numbers(steps, "--steps"),
        views=views,
        runtimes=_split(runtimes) or [],
        layers=_numbers(layers, "--layers"),
        baseline=baseline,
        threads=threads,
        data=open_data("lerobot", root=data) if data else None,
        peers=_split(peers) or [],
        device=device,
        dtype=dtype,
    )
    _finish(document, table(document), out)


@app.command()
def explain(
    teacher: Annotated[
        str,
        typer.Argument(help="Policy folder of lithe, LeRobot or openpi, hub id, or family:preset such as pi:full."),
    ],
    method: Annotated[str | None, typer.Argument(help="Method, e.g. shallow_pi.")] = None,
    knobs: Knobs = None,
) -> None:
    """Show what a method would do to a teacher: layers, parameters, FLOPs, bytes, what trains. Reads no weights."""
    from lithe.explain import explain as run

    typer.echo(str(run(teacher, _method(method, knobs) if method else None)))


@app.command()
def cut(
    source: Annotated[str, typer.Argument(help="Policy folder of lithe, LeRobot or openpi, or hub id.")],
    method: Method,
    knobs: Knobs = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the student; an older policy in it is replaced at the end.")
    ] = Path("runs/cut/student"),
    revision: Revision = None,
) -> None:
    """Cut layers out of a policy's file as a method would, without loading it, and write the student's folder.

    Only what is kept is read and written, in the type it is stored in, so that a machine too small for the teacher can
    do it. The student is NOT trained: it shows how fast and how large a cut would be (`lithe bench`, `lithe profile`),
    and how bad it is before training (`lithe eval`). `lithe distill` cuts and trains in one go and needs no cut before.

    Example: `lithe cut lerobot/pi05_libero shallow_pi keep=6 --out runs/l6`. See before with `lithe explain` what a
    method would keep. Stopped or out of disk space, it leaves what was in the folder before.
    """
    from lithe.cut import cut as run
    from lithe.cut import summary

    document = run(source, _method(method, knobs), out, revision)
    _finish(document, summary(document))


@app.command()
def profile(
    policy: str,
    data: Annotated[
        str | None, typer.Option(help="LeRobotDataset to draw samples from; default: random inputs.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Observations to average over.")] = 64,
    out: Annotated[Path, typer.Option(help="Where to write the Result.")] = Path("runs/profile.json"),
) -> None:
    """Measure how alike adjacent layers are over denoise time, and what skipping each layer does to the actions."""
    from lithe.api import data as open_data
    from lithe.profile import profile as run
    from lithe.profile import table

    document = run(policy, open_data("lerobot", root=data) if data else None, samples=samples)
    _finish(document, table(document), out)


@app.command()
def check(
    policy: Annotated[str, typer.Argument(help="Policy folder or hub id; - checks the data set alone.")],
    dataset: Annotated[str, typer.Argument(help="LeRobotDataset v3: folder or hub id.")],
    revision: Revision = None,
    fps: Annotated[float | None, typer.Option(help="Actions a second, where the policy does not say.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="Camera of the data set = the policy's name for it.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures to decode per camera; every file is looked into.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="Where to write the Result.")] = None,
) -> None:
    """Find what is wrong with a data set and where a policy does not fit it. Changes nothing.

    Exit code 2 when a finding is an error, 0 otherwise.
    """
    from lithe.check import check as run
    from lithe.check import failed, table

    named, source = _renames(rename or []), None if policy == "-" else policy
    document = run(source, dataset, revision=revision, fps=fps, rename=named, pictures=pictures)
    _finish(document, table(document), out)
    if failed(document):
        raise typer.Exit(2)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Result files and run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "lithe report",
) -> None:
    """Put Results together into one self-contained HTML page."""
    from lithe.report import report as run

    typer.echo(f"wrote {run(results, out, title=title)}")


@app.command()
def reproduce(
    recipes: Annotated[
        list[Path], typer.Argument(help="Recipes of one teacher with one budget, e.g. recipes/*/*.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of runs, Results and the page.")] = Path("runs/reproduce"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting changed in all recipes, e.g. train.steps=500.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed chunks a policy.")] = 100,
) -> None:
    """Train recipes on one budget, evaluate and time them beside their teacher, and judge their gates.

    A killed run goes on when the same command is given again. Exit code 1 when a gate is not met.
    """
    from lithe.reproduce import reproduce as run
    from lithe.reproduce import table

    document = run(recipes, out, set_ or [], runs)
    _finish(document, table(document))
    if not all(met for row in document["rows"] for met in row["met"].values()):
        raise typer.Exit(1)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo")) -> None:
    """From the shipped teacher to a proven student in a quarter of an hour: collect, distil, evaluate, time, report."""
    from lithe.demo import demo as run
    from lithe.reproduce import table

    document = run(out)
    _finish(document, table(document))


def main() -> None:
    """Entry point: every foreseen failure is one sentence on standard error and a non-zero exit."""
    try:
        app(standalone_mode=True)
    except SystemExit as ended:
        if ended.code == 130:  # typer leaves without a word on Ctrl-C
            _fail("interrupted; the same command goes on where this one stopped", 130)
        raise
    except (ValueError, ModuleNotFoundError) as error:
        _fail(str(error), 2)
    except (OSError, FloatingPointError, RuntimeError) as error:
        _fail(str(error), 130 if type(error).__name__ == "Interrupted" else 1)


def _train(path: Path, overrides: list[str] | None, out: Path | None, scratch: bool) -> None:
    from lithe.recipe import load
    from lithe.train import train as run

    recipe = load(path, overrides or [])
    if scratch != (recipe.teacher.preset is not None):
        verb = "distill" if scratch else "train"
        raise ValueError(
            f"{path} {'starts from a teacher' if scratch else 'starts from random weights'}: use `lithe {verb}`"
        )
    document = run(recipe, out)
    print(_after_training(document))
    _finish(document)


def _after_training(document: dict[str, Any]) -> str:
    """Where the policy lies, and what one would do with it next."""
    policy, settings = document["rows"][0]["policy"], document["settings"]
    source, sim = settings["teacher"]["source"], (settings["gate"] or {"sim": "metaworld"})["sim"]
    both = f"teacher={source} student={policy}" if source else policy
    return (
        f"The policy is in {policy}, for LeRobot too.\n"
        f"  lithe bench {both}\n  lithe eval {both} --sim {sim}\n  lithe report {Path(policy).parent}"
    )


def _finish(document: dict[str, Any], table: Any = None, path: Path | None = None) -> None:
    """Show the table, write the Result, and print it as the last line."""
    from rich.console import Console

    from lithe.result import line, save

    if table is not None:
        terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(width=None if terminal else 120).print(table)
    if path is not None:
        save(document, path)
    print(line(document))


def _method(name: str, knobs: list[str] | None) -> Any:
    from lithe.api import method
    from lithe.recipe import override

    settings: dict[str, Any] = {}
    for text in knobs or []:
        override(settings, text)
    return method(name, **settings)


def _named(policies: list[str]) -> tuple[list[str], list[str]]:
    """Names and folders from `name=folder` or plain folders."""
    pairs = [text.split("=", 1) if "=" in text else (Path(text).name, text) for text in policies]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two policies are called {max(names, key=names.count)!r}: name them, as in small=runs/a/student"
        )
    return names, [folder for _, folder in pairs]


def _renames(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if not all(text.partition("=")):
            raise ValueError(f"{text!r} is no renaming: write camera=name, as in top=base_0_rgb")
    return dict(text.split("=", 1) for text in texts)  # type: ignore[misc]


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _numbers(text: str | None, option: str) -> list[int]:
    try:
        return [int(part) for part in _split(text) or []]
    except ValueError as error:
        raise ValueError(f"{option} takes whole numbers with commas between them, not {text!r}") from error


def _fail(sentence: str, code: int) -> None:
    print(f"lithe: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
