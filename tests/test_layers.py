"""The package structure of docs/design.md: which file may import which, and the size of files.

Each rule is a function that maps {module name: source} to messages about violations.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffusion"
GROUPS = {
    "": 0, "support": 0,
    "noise": 1,
    "nets": 2, "denoiser": 2,
    "pictures": 3, "likelihood": 3,
    "guidance": 4, "samplers": 4,
    "loss": 5, "metrics": 5, "bench": 6, "data": 5,
    "generation": 6, "preparing": 6,
    "judging": 7,
    "training": 8,
    "exchange": 9,
    "compat": 10, "commands": 10,
    "cli": 11, "sagemaker": 11, "notebook": 11,
    "__main__": 12,
}  # fmt: skip
NEVER = {("nets", "noise"), ("samplers", "nets"), *(("data", other) for other in GROUPS if other != "support")}
WITH_ARGPARSE = {"cli", "commands"}
OPTIONS = "diffusion.commands.options"  # shared by the verbs; no verb itself
HEAVY = ("pytorch_lightning", "torchvision")  # not imported by sampling
SAMPLING = {"diffusion.commands.sample", "diffusion.commands.film", "diffusion.commands.edit"}
ENTRIES, LINES, VERB_LINES = 24, 300, 100

House = Mapping[str, str]


class Import(NamedTuple):
    """A module that a file imports in a given line, and the names from it; none for `import module`."""

    module: str
    names: tuple[str, ...]
    line: int


def read_house(folder: Path = PACKAGE) -> dict[str, str]:
    """The source of each module by its dotted name, packages as "package.__init__"."""
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py"))
    }


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a node, except the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            children = child.orelse
        else:
            children = [child]
        for one in children:
            yield one
            yield from statements(one)


@cache
def imports(source: str) -> list[Import]:
    """The imports of a file at any depth, including import_module("literal name")."""
    found = []
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.append(Import(module, tuple(alias.name for alias in node.names), node.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                name = name.values[0]  # f"diffusion.commands.{name}"
            if isinstance(name, ast.Constant):
                found.append(Import(name.value.rstrip("."), (), node.lineno))
    return found


def targets(house: House, source: str) -> list[tuple[str, int]]:
    """The modules of the package that a file imports, with their lines; packages as "package.__init__"."""
    found = []
    for module, names, line in imports(source):
        if module.partition(".")[0] != "diffusion":
            continue
        submodules = [f"{module}.{n}" for n in names if {f"{module}.{n}", f"{module}.{n}.__init__"} & house.keys()]
        whole = [module] if len(submodules) < len(names) or not names else []
        found += [(f"{m}.__init__" if f"{m}.__init__" in house else m, line) for m in submodules + whole]
    return found


def group_of(module: str) -> str:
    """The top-level entry that a module belongs to; "" is the package itself."""
    parts = module.removesuffix(".__init__").split(".")
    return parts[1] if len(parts) > 1 else ""


# --- rules ------------------------------------------------------------------------------------------------


def upward_imports(house: House) -> list[str]:
    """A file imports from groups above its own, and from its own package."""
    found = []
    for name, source in house.items():
        own = group_of(name)
        for target, line in targets(house, source):
            other = group_of(target)
            if other != own and (GROUPS[other] >= GROUPS[own] and other or (own, other) in NEVER):
                found.append(f"{name}:{line} imports {target}")
    return found


def imports_of_own_package(house: House) -> list[str]:
    """A module does not import a package that contains it; from `diffusion` it imports only the version."""
    found = []
    for name, source in house.items():
        above = {f"{name.removesuffix('.__init__').rsplit('.', k)[0]}.__init__" for k in range(1, name.count(".") + 1)}
        above |= {"diffusion.__init__"}
        version = {i.line for i in imports(source) if i.module == "diffusion" and i.names == ("__version__",)}
        found += [
            f"{name}:{line} imports {target}"
            for target, line in targets(house, source)
            if target in above - {name} and line not in version
        ]
    return found


def cycles(house: House) -> list[str]:
    """No module is reachable from its own imports. Importing a package runs its __init__."""
    edges = {name: sorted({t for t, _ in targets(house, source)}) for name, source in house.items()}
    found, done = [], set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for target in edges.get(name, []):
                visit(target, [*way, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    return found


def argparse_outside_the_command_line(house: House) -> list[str]:
    """Only cli and commands import argparse."""
    return [
        f"{name}:{found.line} imports argparse"
        for name, source in house.items()
        for found in imports(source)
        if found.module == "argparse" and group_of(name) not in WITH_ARGPARSE
    ]


def is_verb(name: str) -> bool:
    """Whether a module is a command, or finds them."""
    return group_of(name) == "commands" and not name.startswith(OPTIONS)


def imported_verbs(house: House) -> list[str]:
    """Only the command line imports verbs; all others call the functions of the library."""
    known = house | {name: "" for name in read_house() if name.startswith("diffusion.commands")}
    return [
        f"{name}:{line} imports {target}"
        for name, source in house.items()
        for target, line in targets(known, source)
        if is_verb(target) and name != "diffusion.cli"
    ]


def unusual_imports(house: House) -> list[str]:
    """Imports are absolute, and Lightning is imported as pytorch_lightning."""
    return [
        f"{name}:{found.line} imports {found.module}"
        for name, source in house.items()
        for found in imports(source)
        if found.module.startswith(".") or found.module.partition(".")[0] == "lightning"
    ]


def long_files(house: House) -> list[str]:
    """A file has at most 300 lines, a verb at most 100."""
    lines = {name: len(source.splitlines()) for name, source in house.items()}
    limits = {name: VERB_LINES if is_verb(name) else LINES for name in house}
    return [f"{name} has {n} lines, at most {limits[name]}" for name, n in lines.items() if n > limits[name]]


def unknown_groups(house: House) -> list[str]:
    """Every top-level entry has a group."""
    return sorted({group_of(name) for name in house} - GROUPS.keys())


def crowded_top(house: House) -> list[str]:
    """The top level has at most 24 packages and modules."""
    entries = {name.split(".")[1] for name in house}
    return [f"{len(entries)} entries, at most {ENTRIES}"] if len(entries) > ENTRIES else []


def others() -> dict[str, str]:
    """The project's Python code outside the package and the tests."""
    files = [p for folder in ("benchmarks", "docs", "notebooks") for p in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def loaded(*modules: str) -> list[str]:
    """The heavy packages that a fresh process imports with the given modules."""
    names = ", ".join(modules)
    code = f"import sys, {names}; print(*[name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.split()


# --- the package, and planted violations --------------------------------------------------------------------

PLANTED = {
    upward_imports: [
        ("diffusion.noise.bad", "from diffusion.samplers import DDIM", "diffusion.samplers.__init__"),
        ("diffusion.noise.bad", "from diffusion import samplers", "diffusion.samplers.__init__"),
        ("diffusion.nets.bad", "from diffusion.noise import Linear", "diffusion.noise.__init__"),
        ("diffusion.nets.bad", "import diffusion.denoiser.base", "diffusion.denoiser.base"),  # the same group
        ("diffusion.samplers.bad", "def f():\n    from diffusion.nets.unet import UNet", "diffusion.nets.unet"),
        ("diffusion.data.bad", "from diffusion.noise.level import Level", "diffusion.noise.level"),
        ("diffusion.metrics.bad", "from diffusion.data import Digits", "diffusion.data.__init__"),
        ("diffusion.judging.bad", "from diffusion.training.run import train", "diffusion.training.run"),
        (
            "diffusion.generation.editing.bad",
            "x = import_module('diffusion.commands.options.parser')",
            "diffusion.commands.options.parser",
        ),
    ],
    imports_of_own_package: [
        ("diffusion.samplers.bad", "from diffusion.samplers import DDIM", "diffusion.samplers.__init__"),
        ("diffusion.training.callbacks.bad", "from diffusion.training.callbacks import EMA", "callbacks.__init__"),
        ("diffusion.training.callbacks.bad", "import diffusion.training", "diffusion.training.__init__"),
        ("diffusion.samplers.bad", "def f():\n    from diffusion import Pipeline", "diffusion.__init__"),
    ],
    cycles: [
        ("diffusion.samplers.steps", "from diffusion.samplers.base import Sampler", "steps -> diffusion.samplers.base"),
        ("diffusion.noise.level", "def f():\n    from diffusion.noise.schedule import Schedule", "noise.schedule"),
        ("diffusion.noise.level", "from diffusion.noise import Linear", "diffusion.noise.__init__"),
    ],
    argparse_outside_the_command_line: [
        ("diffusion.training.bad", "import argparse", "argparse"),
        ("diffusion.notebook", "def f():\n    from argparse import Namespace", "argparse"),
    ],
    imported_verbs: [
        ("diffusion.notebook", "from diffusion.commands import sample", "diffusion.commands.sample"),
        ("diffusion.commands.bad", "from diffusion.commands.fit import main", "diffusion.commands.fit"),
        ("benchmarks.bad", "from diffusion.commands.fit import main", "diffusion.commands.fit"),
        ("diffusion.sagemaker", "import_module(f'diffusion.commands.{name}')", "diffusion.commands.__init__"),
    ],
    unusual_imports: [
        ("diffusion.noise.bad", "from .level import Level", ".level"),
        ("diffusion.training.bad", "import lightning.pytorch as pl", "lightning.pytorch"),
    ],
    long_files: [
        ("diffusion.noise.bad", "x = 1\n" * 299, "has 301 lines"),  # with an empty one above and below
        ("diffusion.commands.bad", "x = 1\n" * 99, "has 101 lines"),
    ],
    unknown_groups: [("diffusion.tools", "", "tools")],
}  # fmt: skip
CASES = [(rule, *case) for rule, cases in PLANTED.items() for case in cases]


@pytest.fixture(scope="module")
def house():
    return read_house()


@pytest.mark.parametrize("rule", [*PLANTED, crowded_top], ids=lambda rule: rule.__name__)
def test_the_package_has_no(rule, house):
    assert len(house) > 100
    assert rule(house) == []


@pytest.mark.parametrize("rule, name, source, found", CASES, ids=[rule.__name__ for rule, *_ in CASES])
def test_a_planted_violation_is_found(rule, name, source, found, house):
    violations = rule(house | {name: house.get(name, "") + f"\n{source}\n"})
    assert violations and all(name.rpartition(".")[2] in v and found in v for v in violations)


def test_a_crowded_top_level_is_found(house):
    more = {f"diffusion.more{k}": "" for k in range(ENTRIES)}
    assert f"at most {ENTRIES}" in crowded_top(house | more)[0]


def test_imports_for_type_checkers_do_not_count(house):
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from diffusion.samplers import DDIM\n"
    assert upward_imports(house | {"diffusion.noise.good": source}) == []
    assert len(upward_imports(house | {"diffusion.noise.bad": source + "else:\n    import diffusion.samplers\n"})) == 1


def test_nothing_outside_the_package_imports_a_verb(house):
    assert len(others()) > 10 and imported_verbs(others()) == []


def test_sampling_and_editing_import_neither_lightning_nor_torchvision(house):
    """In a separate process: their verbs, and every module of the groups up to generation, except data sets."""
    below = {name for name in house if GROUPS[group_of(name)] <= GROUPS["generation"] and group_of(name) != "data"}
    assert {"diffusion.generation.sample", "diffusion.generation.editing.sheet"} <= below
    assert loaded(*sorted(n.removesuffix(".__init__") for n in below | SAMPLING)) == []


@pytest.mark.slow
def test_an_import_of_lightning_or_torchvision_is_found():
    assert loaded("diffusion.data.cifar") == list(HEAVY)
