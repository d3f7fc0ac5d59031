"""The look-up pages: every environment variable that is read and every exit code that is used are on them."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from diffusion.cli import UNREAD
from diffusion.commands.options import errors
from diffusion.support import signals

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "lookup"
VARIABLE = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")
NPM = re.compile(r"npm_config_[a-z]+")  # in any case, see `npm.registry`
OURS = re.compile(r"(DIFFUSION|SM)_[A-Z_]+")
ENDS = {"main", "run", "_run", "job"}  # functions whose integer is an exit code


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted((ROOT / "diffusion").rglob("*.py"))}


def environ(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv") for n in ast.walk(node))


def constants(tree: ast.Module) -> dict[str, ast.AST]:
    """The values of a module's own names."""
    return {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")}


def reads(tree: ast.Module) -> set[str]:
    """The environment variables of a module: names in calls, subscripts, comparisons and loops with `os.environ`."""
    known, found = constants(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and environ(node.func):
            found += [*node.args, *node.keywords]
        elif isinstance(node, ast.Subscript) and environ(node.value):
            found.append(node.slice)
        elif isinstance(node, (ast.Compare, ast.GeneratorExp, ast.ListComp, ast.DictComp)) and environ(node):
            found.append(node)
    inner = [n for node in found for n in ast.walk(node)]
    inner += [n for name in inner if isinstance(name, ast.Name) and name.id in known for n in ast.walk(known[name.id])]
    named = {n.value for n in inner if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    if any(NPM.fullmatch(name) for name in texts(tree)):  # read from a copy with lower-case names
        named |= {name.upper() for name in texts(tree) if NPM.fullmatch(name)}
    return {name for name in named if VARIABLE.fullmatch(name)}


def texts(tree: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def shell(path: Path) -> set[str]:
    """The variables that a script takes from its surroundings: upper case, and never assigned in it."""
    text = path.read_text()
    assigned = set(re.findall(r"\b([A-Z][A-Z0-9_]*)=", text)) | {"PWD", "BASH_SOURCE"}
    return set(re.findall(r"\$\{?([A-Z][A-Z0-9_]{2,})\b", text)) - assigned


def sections(page: str) -> dict[str, set[str]]:
    """The variables named in the first column of a page's tables, by section."""
    found = {}
    for part in re.split(r"^## ", (PAGES / page).read_text(), flags=re.M)[1:]:
        rows = re.findall(r"^\| (`[^|]*) \|", part, flags=re.M)
        found[part.splitlines()[0]] = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row)}
    return found


def test_every_variable_that_the_package_reads_is_on_the_page_and_no_other():
    found = sections("environment.md")
    listed = set().union(*(names for part, names in found.items() if part not in ("setup.sh", "Tests", "Benchmarks")))
    read = [reads(ast.parse(text)) for text in sources().values() if "environ" in text or "getenv" in text]
    assert set().union(*read) == listed and len(listed) > 25


def test_every_variable_of_the_benchmarks_alone_is_on_the_page_and_no_other():
    read = [reads(ast.parse(path.read_text())) for path in (ROOT / "benchmarks").rglob("*.py")]
    named = sections("environment.md")
    mine = named.pop("Benchmarks")
    shared = set().union(*named.values()) | {"PYTHONPATH", "OMP_NUM_THREADS"}
    assert set().union(*read) - shared == mine


def test_every_variable_that_setup_and_the_tests_read_is_on_the_page_and_no_other():
    found = sections("environment.md")
    assert shell(ROOT / "setup.sh") == found["setup.sh"]
    named = re.compile(r"(?:environ\.get\(|environ\[|getenv\()\"([A-Z_]+)\"|\"([A-Z_]+)\" (?:not )?in os\.environ")
    read = set()
    for path in (ROOT / "tests").rglob("*.py"):
        read |= {a or b for a, b in named.findall(path.read_text()) if not (a or b).startswith("FAKE_")}
    mine = {name for name in read if OURS.fullmatch(name) or name.startswith("PYTEST")}
    assert mine - {name for names in found.values() for name in names} == set()
    assert found["Tests"] <= mine


def whole(node: ast.AST | None) -> set[int]:
    """The integers that an expression may be, where they are written out."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return {node.value}
    if isinstance(node, ast.IfExp):
        return whole(node.body) | whole(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*map(whole, node.values))
    return set()


def codes(tree: ast.Module) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "os._exit", "SystemExit", "exit"):
            found |= set().union(*map(whole, node.args))
        if isinstance(node, ast.FunctionDef) and node.name in ENDS:
            for inner in ast.walk(node):
                found |= whole(inner.value) if isinstance(inner, ast.Return) else set()
    return found


def table() -> set[int]:
    first = (PAGES / "exit_codes.md").read_text().split("\n## ")[0]
    return {int(code) for code in re.findall(r"^\| (\d+) \|", first, flags=re.M)}


def test_every_exit_code_is_in_the_table_and_no_other():
    used = {UNREAD} | {signals.code_of(number) for number in signals.NUMBERS}
    for path, text in sources().items():
        ends = path.name in ("cli.py", "sagemaker.py") or re.search(r"\b(sys\.exit|os\._exit|SystemExit)\(", text)
        if path.parent.name == "commands" or ends:
            used |= codes(ast.parse(text))
    kinds = (ValueError("x"), FileNotFoundError("x"), OSError(28, "full"), ImportError("x"), MemoryError(),
             RuntimeError("CUDA out of memory"), RuntimeError("x"), KeyError("x"))  # fmt: skip
    used |= {errors.explain(error, "fit")[1] for error in kinds}
    assert used == table() == {0, 1, 2, 130, 141, 143}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), 2), (OSError(28, "full"), 2), (ImportError("x"), 2), (MemoryError(), 1), (KeyError("x"), 1)],
)
def test_the_table_says_2_for_the_input_and_1_for_the_rest(error, code):
    assert errors.explain(error, "sample")[1] == code


def test_every_key_of_a_checkpoint_and_field_of_a_description_is_on_the_page():
    """Those of the included model, and those that `released` reads."""
    import torch

    from diffusion.support import released, zoo

    page = (PAGES / "formats.md").read_text()
    checkpoint = torch.load(zoo.located("zoo:digits"), weights_only=True)
    parts = {*checkpoint, *checkpoint["hyper_parameters"], *checkpoint["callbacks"], *released.PARTS}
    assert [name for name in sorted(parts) if f"`{name}`" not in page] == []


def test_every_folder_of_the_cache_is_on_the_page():
    page = (PAGES / "formats.md").read_text().split("## The cache folder")[1]
    text = "".join(sources().values())
    assert {f"`{name}/" for name in re.findall(r"cache_root\(\) / \"(\w+)\"", text)} == set(re.findall(r"`\w+/", page))
