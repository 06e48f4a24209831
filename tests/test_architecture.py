"""The architecture's rules as tests: who imports whom, where timers live, how long things get, what is never written.

Each rule is a function from a tree's root to sentences about its violations. It must find none in this tree and must
find the one planted in a copy (`PLANTED`), so that no rule can rot into one that cannot fail. Rules read source with
`ast`; only the last two tests import anything.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from lithe import registry

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "lerobot", "mujoco", "metaworld", "matplotlib")
# A layer imports only from those to its left, and never from TOP.
LAYERS = ("types", "routers", "surgery", "families", "teacher", "methods", "distill")
TOP = {"cli", "evaluate", "explain", "report", "runtimes", "serve", "sims"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_RECIPE_LINES = 500, 80, 40
BAD_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
TIMERS = {"perf_counter", "perf_counter_ns", "process_time", "thread_time", "time.time", "time.time_ns"}
DEVICE_TIMERS = {"synchronize", "elapsed_time", "cuda.Event"}
# A coarse clock for progress lines and deadlines, never for a published number.
MONOTONIC_ALLOWED = {"cli.py", "collect.py", "distill.py", "serve/server.py", "serve/safety.py"}
HASATTR_ALLOWED: dict[str, str] = {}  # "families/pi.py": "why this cannot be asked in another way"
LOSSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cross_entropy", "cosine_similarity"}
CLIENT_MAY_IMPORT = {"numpy", "msgpack", "websockets"}


@cache
def _parsed(path: Path, _stamp: int) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    return tree


def parse(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


def sources(root: Path, *folders: str) -> list[Path]:
    folders = folders or ("src/lithe",)
    return sorted(p for f in folders for p in (root / f).rglob("*.py") if "__pycache__" not in p.parts)


def shipped(root: Path) -> list[Path]:
    return sources(root, "src", "client", "plugins")


def inside(path: Path, root: Path) -> str:
    """The path inside the package: `families/pi.py`."""
    return path.relative_to(root / "src/lithe").as_posix()


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dotted(node: ast.AST) -> str:
    """`torch.cuda.Event` for the expression that spells it; empty for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imports(path: Path, root: Path, *, on_import_only: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of imported modules with their lines; `from lithe import x` counts as lithe and lithe.x."""
    here = module_name(path, root) if (root / "src") in path.parents else ""
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Import | ast.ImportFrom) or (on_import_only and not runs_on_import(node)):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
            continue
        up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        yield base, node.lineno
        yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def runs_on_import(node: ast.AST) -> bool:
    """False inside a function and under `if TYPE_CHECKING`."""
    while (node := getattr(node, "parent", None)) is not None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            return False
    return True


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def plugins(root: Path, kind: str) -> list[Path]:
    folder = root / "src/lithe" / kind
    return sorted(p for p in folder.glob("*.py") if p.stem != "base" and not p.stem.startswith("_"))


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def layers_import_only_downwards(root: Path) -> Iterator[str]:
    for path in sources(root):
        layer = inside(path, root).split("/")[0].removesuffix(".py")
        if layer not in LAYERS:
            continue
        forbidden = {*LAYERS[LAYERS.index(layer) + 1 :], *(TOP if layer != "distill" else {"cli"})}
        for module, line in imports(path, root):
            if module.startswith("lithe.") and module.split(".")[1] in forbidden:
                yield f"{inside(path, root)}:{line} imports {module}, which lies above {layer}"


def plugins_do_not_know_each_other(root: Path) -> Iterator[str]:
    families = {p.stem for p in plugins(root, "families")}
    for path in sources(root, "src/lithe/methods"):
        for module, line in imports(path, root):
            if (
                within(module, "lithe.families")
                and not within(module, "lithe.families.base")
                and module != "lithe.families"
            ):
                yield f"{inside(path, root)}:{line} imports {module}; a method sees families.base only"
        tree = parse(path)
        skip = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in families and id(node) not in skip:
                yield f"{inside(path, root)}:{node.lineno} names the family {node.value!r}"
    for kind, banned in (("families", "methods"), ("runtimes", "methods"), ("runtimes", "distill")):
        for path in sources(root, f"src/lithe/{kind}"):
            for module, line in imports(path, root):
                if within(module, f"lithe.{banned}"):
                    yield f"{inside(path, root)}:{line} imports {module}; {kind} do not know {banned}"


def trainer_names_no_plugin(root: Path) -> Iterator[str]:
    names = {p.stem for kind in ("methods", "families") for p in plugins(root, kind)}
    for path in sources(root):
        if inside(path, root) != "distill.py":
            continue
        for module, line in imports(path, root):
            for kind in ("methods", "families"):
                if module.startswith(f"lithe.{kind}.") and not within(module, f"lithe.{kind}.base"):
                    yield f"distill.py:{line} imports {module}"
        tree = parse(path)
        skip = docstrings(tree)
        for node in ast.walk(tree):
            word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
            if word in LOSSES:
                yield f"distill.py:{node.lineno} names the loss {word}"
            if isinstance(node, ast.Constant) and node.value in names and id(node) not in skip:
                yield f"distill.py:{node.lineno} names the plug-in {node.value!r}"


def imports_on_load(path: Path, root: Path) -> dict[str, str]:
    """Every module that importing this file imports, through lithe's own modules, with the file that does it."""
    by_name = {module_name(p, root): p for p in sources(root)}
    todo, seen, found = [module_name(path, root)], set(), {}
    while todo:
        module = todo.pop()
        parents = {".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 2)}
        for name in parents & by_name.keys() - seen:
            seen.add(name)
            for imported, line in imports(by_name[name], root, on_import_only=True):
                found.setdefault(imported, f"{inside(by_name[name], root)}:{line}")
                todo.append(imported)
    return found


def sims_and_protocol_need_no_torch(root: Path) -> Iterator[str]:
    for path in [*sources(root, "src/lithe/sims"), *(root / "src/lithe/serve").glob("protocol.py")]:
        for module, line in imports(path, root):
            if within(module, "torch"):
                yield f"{inside(path, root)}:{line} imports {module}"
        for module, where in imports_on_load(path, root).items():
            if within(module, "torch"):
                yield f"importing {inside(path, root)} imports {module} at {where}"


def client_stands_alone(root: Path) -> Iterator[str]:
    own = {p.name.removesuffix(".py") for p in (root / "client").rglob("*") if p.is_dir() or p.suffix == ".py"}
    for path in sources(root, "client"):
        if "tests" in path.relative_to(root).parts:
            continue
        for module, line in imports(path, root):
            top = module.split(".")[0]
            if top and top not in CLIENT_MAY_IMPORT | own | set(sys.stdlib_module_names):
                yield f"{path.relative_to(root)}:{line} imports {module}; not among {sorted(CLIENT_MAY_IMPORT)}"


def only_measure_times(root: Path) -> Iterator[str]:
    for path in sources(root):
        name = inside(path, root)
        if name == "measure.py":
            continue
        spelled = [(module, line) for module, line in imports(path, root)]
        spelled += [(dotted(n), n.lineno) for n in ast.walk(parse(path)) if isinstance(n, ast.Attribute)]
        for word, line in spelled:
            if any(word == t or word.endswith("." + t) for t in TIMERS | DEVICE_TIMERS):
                yield f"{name}:{line} {word}: timers and synchronisation live in measure.py"
            if word.startswith("time.monotonic") and name not in MONOTONIC_ALLOWED:
                yield f"{name}:{line} {word}: a clock for progress and deadlines; see MONOTONIC_ALLOWED"


def nothing_grows_too_long(root: Path) -> Iterator[str]:
    for path in shipped(root):
        name = path.relative_to(root)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{name} has {lines} lines"
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{name}:{node.lineno} {node.name} has {length} lines"


def files_are_named_and_placed(root: Path) -> Iterator[str]:
    for path in sources(root, "src", "client", "plugins", "tests", "examples", "scripts"):
        if path.stem in BAD_NAMES or BAD_NAMES & set(path.relative_to(root).parts):
            yield f"{path.relative_to(root)}: shared code has a noun"
    for path in sources(root):
        if inside(path, root).count("/") > 1:
            yield f"{inside(path, root)} is on a third level"


def files_open_with_words(root: Path) -> Iterator[str]:
    for path in sources(root, "src", "client", "plugins", "tests", "examples", "scripts"):
        text = path.read_text(encoding="utf-8")
        if text.strip() and not ast.get_docstring(parse(path)) and not re.match(r"#(?!!| ?type:| ?noqa)\s*\w", text):
            yield f"{path.relative_to(root)} does not say what it is"
    for path in sorted((root / "recipes").rglob("*.yaml")):
        if not path.read_text(encoding="utf-8").startswith("# "):
            yield f"{path.relative_to(root)} does not say what it is"


def nothing_unsafe(root: Path) -> Iterator[str]:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "eval", "exec", "hub.load"}
    keywords = {("strict", False), ("trust_remote_code", True), ("allow_pickle", True)}
    for path in shipped(root):
        name = path.relative_to(root)
        for module, line in imports(path, root):
            if module.split(".")[0] in modules or module in calls:
                yield f"{name}:{line} imports {module}"
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            called = dotted(node.func)
            if called in calls or called.endswith(".hub.load"):
                yield f"{name}:{node.lineno} calls {called}"
            if (
                called.endswith("load_state_dict")
                and len(node.args) > 1
                and getattr(node.args[1], "value", True) is False
            ):
                yield f"{name}:{node.lineno} loads weights without strictness"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in keywords:
                    yield f"{name}:{node.lineno} {called}({keyword.arg}={keyword.value.value})"


def nothing_swallowed(root: Path) -> Iterator[str]:
    broad = {"Exception", "BaseException"}
    for path in shipped(root):
        name = path.relative_to(root)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else []
                silent = all(isinstance(s, ast.Pass | ast.Continue | ast.Expr) and not _calls(s) for s in node.body)
                if node.type is None or (silent and broad & {dotted(c) for c in caught}):
                    yield f"{name}:{node.lineno} swallows every error"
            if (
                isinstance(node, ast.Call)
                and dotted(node.func).endswith("suppress")
                and broad & {dotted(a) for a in node.args}
            ):
                yield f"{name}:{node.lineno} swallows every error"


def _calls(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(statement))


def nothing_probed(root: Path) -> Iterator[str]:
    for path in sources(root):
        name = inside(path, root)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Name) and node.id == "hasattr" and name not in HASATTR_ALLOWED:
                yield f"{name}:{node.lineno} probes with hasattr; ask the seam (or give a reason in HASATTR_ALLOWED)"


def one_plugin_a_file(root: Path) -> Iterator[str]:
    for kind in registry.KINDS:
        base = registry.kind_class(kind)
        for path in plugins(root, kind):
            tree = parse(path)
            kin = {base}
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and (within(node.module or "", f"lithe.{kind}") or node.level == 1):
                    kin |= {alias.asname or alias.name for alias in node.names}
            found = []
            for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
                if kin & {dotted(b).rpartition(".")[2] for b in node.bases}:
                    kin.add(node.name)
                    found += [node.name] if not node.name.startswith("_") else []
            if len(found) != 1:
                yield f"{inside(path, root)} defines {found or 'no public class'} where one public {base} is due"


def recipes_stay_small(root: Path) -> Iterator[str]:
    for path in sorted((root / "recipes").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_RECIPE_LINES:
            yield f"{path.relative_to(root)} has {len(text.splitlines())} lines"
        if not isinstance(yaml.safe_load(text), dict):
            yield f"{path.relative_to(root)} is not a mapping"
        if "_target_" in text or "${" in text:
            yield f"{path.relative_to(root)} uses _target_ or interpolation"


def no_addresses(root: Path) -> Iterator[str]:
    # Spelled in pieces, for this file is searched too.
    names = "py@pi.org", "python@hosted.org", "npm@js.org", "deb.@debian.org", "download.@pytorch.org"
    host = re.compile("|".join(r"\b" + re.escape(name.replace("@", "")) for name in names))
    place = re.compile(r"(^|[^a-zA-Z])/(?:" + "|".join(("work", "farm", "root", "home", "Users")) + ")/")
    for path in tracked(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture or weights
        for number, line in enumerate(lines, 1):
            if host.search(line) or place.search(line):
                yield f"{path.relative_to(root)}:{number} names a registry or a machine's path: {line.strip()[:60]}"


def tracked(root: Path) -> list[Path]:
    """What git has or would add; every file where the tree is no checkout."""
    git = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=False
    )
    if git.returncode == 0 and (root / ".git").exists():
        return [p for name in git.stdout.split("\0") if name and (p := root / name).is_file() and not p.is_symlink()]
    return [p for p in root.rglob("*") if p.is_file() and not {".venv", ".uv", "__pycache__"} & set(p.parts)]


def version_stands_once(root: Path) -> Iterator[str]:
    for path in sources(root):
        for node in ast.walk(parse(path)):
            stated = isinstance(node, ast.Assign) and any(dotted(t) == "__version__" for t in node.targets)
            if stated and inside(path, root) != "__init__.py":
                yield f"{inside(path, root)}:{node.lineno} states the version again; it stands in __init__.py alone"
    project = root / "pyproject.toml"
    if project.exists() and re.search(r"^version *=", project.read_text(encoding="utf-8"), re.MULTILINE):
        yield "pyproject.toml states the version again; it stands in src/lithe/__init__.py alone"


Rule = Callable[[Path], Iterator[str]]
# (rule, file, what is planted there); every rule has at least one.
PLANTED: list[tuple[Rule, str, str]] = [
    (layers_import_only_downwards, "src/lithe/surgery.py", "from lithe.families.base import Family"),
    (layers_import_only_downwards, "src/lithe/types.py", "def f():\n    from . import surgery"),
    (layers_import_only_downwards, "src/lithe/families/pi.py", "import lithe.runtimes.eager"),
    (plugins_do_not_know_each_other, "src/lithe/methods/cut.py", "from ..families.pi import Pi"),
    (plugins_do_not_know_each_other, "src/lithe/methods/cut.py", "def f(x):\n    return x.name == 'pi'"),
    (plugins_do_not_know_each_other, "src/lithe/families/pi.py", "from lithe.methods import cut"),
    (plugins_do_not_know_each_other, "src/lithe/runtimes/eager.py", "import lithe.methods.cut"),
    (trainer_names_no_plugin, "src/lithe/distill.py", "from lithe.families.pi import Pi"),
    (trainer_names_no_plugin, "src/lithe/distill.py", "def f(m):\n    return m == 'cut'"),
    (trainer_names_no_plugin, "src/lithe/distill.py", "def f(F, a, b):\n    return F.mse_loss(a, b)"),
    (sims_and_protocol_need_no_torch, "src/lithe/sims/fake.py", "def f():\n    import torch.nn"),
    (sims_and_protocol_need_no_torch, "src/lithe/sims/fake.py", "from lithe.runtimes import eager"),
    (sims_and_protocol_need_no_torch, "src/lithe/serve/protocol.py", "from torch import nn"),
    (client_stands_alone, "client/lithe_client.py", "import torch"),
    (only_measure_times, "src/lithe/evaluate.py", "import time\nt = time.perf_counter()"),
    (only_measure_times, "src/lithe/evaluate.py", "from time import perf_counter as t"),
    (only_measure_times, "src/lithe/surgery.py", "import time\nt = time.monotonic()"),
    (only_measure_times, "src/lithe/runtimes/eager.py", "import torch\ntorch.cuda.synchronize()"),
    (nothing_grows_too_long, "src/lithe/surgery.py", "x = 1\n" * 500),
    (nothing_grows_too_long, "src/lithe/surgery.py", "def f():\n" + "    x = 1\n" * 80),
    (files_are_named_and_placed, "src/lithe/utils.py", "x = 1"),
    (files_are_named_and_placed, "src/lithe/methods/deep/x.py", "x = 1"),
    (nothing_unsafe, "src/lithe/teacher.py", "import pickle"),
    (nothing_unsafe, "src/lithe/teacher.py", "def f(torch, p):\n    return torch.load(p)"),
    (nothing_unsafe, "src/lithe/teacher.py", "def f(m, w):\n    m.load_state_dict(w, strict=False)"),
    (nothing_unsafe, "src/lithe/teacher.py", "def f(m, w):\n    m.load_state_dict(w, False)"),
    (nothing_unsafe, "plugins/p/x.py", "def f(m):\n    m.from_pretrained('x', trust_remote_code=True)"),
    (nothing_swallowed, "src/lithe/teacher.py", "try:\n    x = 1\nexcept:\n    raise"),
    (nothing_swallowed, "src/lithe/teacher.py", "try:\n    x = 1\nexcept (OSError, Exception):\n    pass"),
    (nothing_swallowed, "src/lithe/teacher.py", "import contextlib\nwith contextlib.suppress(Exception):\n    x = 1"),
    (nothing_probed, "src/lithe/families/pi.py", "def f(x):\n    return hasattr(x, 'y')"),
    (one_plugin_a_file, "src/lithe/families/pi.py", "from .base import Family\nclass A(Family): ...\nclass B(A): ..."),
    (one_plugin_a_file, "src/lithe/sims/fake.py", "class Fake: ..."),
    (recipes_stay_small, "recipes/pi/fake/cut.yaml", "a: 1\n" + "# more\n" * 40),
    (recipes_stay_small, "recipes/pi/fake/cut.yaml", "a: ${b}"),
    (no_addresses, "docs/index.md", "see https://py" + "pi.org/simple"),
    (no_addresses, "scripts/x.sh", "cd /" + "work/main"),
    (version_stands_once, "src/lithe/types.py", "__version__ = '1.2.3'"),
    (version_stands_once, "pyproject.toml", "version = '1.2.3'"),
]  # fmt: skip
UNEXPLAINED = [(files_open_with_words, name, "a: 1\n") for name in ("src/lithe/surgery.py", "recipes/a.yaml")]
RULES = list(dict.fromkeys(rule for rule, *_ in [*PLANTED, *UNEXPLAINED]))
CLEAN = {
    "src/lithe/__init__.py": "",
    "src/lithe/types.py": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"
    ),
    "src/lithe/surgery.py": "from lithe import types",
    "src/lithe/families/base.py": "import lithe.surgery\nclass Family: ...",
    "src/lithe/families/pi.py": "from .base import Family\nclass _Part: ...\nclass Pi(Family): ...",
    "src/lithe/teacher.py": "from lithe.families.base import Family",
    "src/lithe/methods/base.py": "from lithe.families.base import Family\nclass Method: ...",
    "src/lithe/methods/cut.py": "import math\nfrom .base import Method\nclass Cut(Method):\n    turn = math.pi",
    "src/lithe/distill.py": "import time\nfrom lithe.methods.base import Method\nt = time.monotonic()",
    "src/lithe/measure.py": "import time\nt = time.perf_counter()",
    "src/lithe/evaluate.py": "from lithe import distill",
    "src/lithe/runtimes/base.py": "class Runtime: ...",
    "src/lithe/runtimes/eager.py": (
        "import torch\nfrom lithe.families.pi import Pi\nfrom .base import Runtime\nclass Eager(Runtime): ..."
    ),
    "src/lithe/sims/base.py": "from lithe.types import x\nclass Sim: ...",
    "src/lithe/sims/fake.py": "import numpy\nfrom lithe.sims.base import Sim\nclass Fake(Sim): ...",
    "src/lithe/serve/protocol.py": "import msgpack",
    "client/lithe_client.py": "import json\nimport numpy",
    "recipes/pi/fake/cut.yaml": "a: 1",
}


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    for name, text in CLEAN.items():
        write(root, name, f"# What it is.\n{text}\n")
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_this_tree_keeps(rule):
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_a_clean_tree_passes(rule, clean_tree):
    assert list(rule(clean_tree)) == []


@pytest.mark.parametrize(("rule", "name", "text"), [*PLANTED, *UNEXPLAINED], ids=lambda x: getattr(x, "__name__", None))
def test_a_planted_violation_is_caught(rule, name, text, tmp_path):
    for other, body in CLEAN.items():
        write(tmp_path, other, f"# What it is.\n{body}\n")
    write(tmp_path, name, text if rule is files_open_with_words else f"# What it is.\n{text}\n")
    assert list(rule(tmp_path))


def test_importing_lithe_is_lean():
    code = f"import lithe, sys; print([m for m in {HEAVY} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_registry_finds_every_file():
    for kind in registry.KINDS:
        for path in plugins(ROOT, kind):
            assert registry.get(kind, path.stem).__module__ == f"lithe.{kind}.{path.stem}"
