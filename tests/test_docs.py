"""The documentation: every code and test that it names exists, and GitHub can render its formulas."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THEORY = (ROOT / "docs" / "theory.md").read_text()
LEARN = sorted((ROOT / "docs" / "learn").glob("*.md"))
WRITTEN = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "site")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *WRITTEN]
PROVEN = [THEORY, *(page.read_text() for page in LEARN)]
LINES = [line for text in PROVEN for line in text.splitlines() if line.startswith(("code: ", "test: "))]
CODE = sorted({n for line in LINES for n in re.findall(r"`(diffusion\.[\w.]+)`", line)})
TESTS = sorted({n for line in LINES for n in re.findall(r"`(tests/[\w/]+\.py::\w+)`", line)})


def resolve(name: str) -> object:
    """The module, class, function or method with a dotted name."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_every_reference_line_has_the_expected_form():
    """Every reference line has the expected form and contains only known names."""
    assert len(LINES) > 25 and len(CODE) > 30 and len(TESTS) > 50
    for line in LINES:
        rest = line
        for name in (*CODE, *TESTS):
            rest = rest.replace(f"`{name}`", "")
        assert re.fullmatch(r"(code: [, ]*; )?test: [, ]*", rest), line


@pytest.mark.parametrize("name", CODE)
def test_code_named_in_the_docs_exists(name):
    assert callable(resolve(name))


@pytest.mark.parametrize("name", TESTS)
def test_tests_named_in_the_docs_exist(name):
    path, function = name.split("::")
    tree = ast.parse((ROOT / path).read_text())
    assert function.startswith("test_") and function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_every_section_with_an_equation_is_proven():
    sections = re.split(r"^## ", THEORY, flags=re.M)[1:]
    equations = [s for s in sections if "$$" in s]
    assert len(equations) == 14
    for section in equations:
        last = section.rindex("$$")
        assert "test: `tests/" in section[last:], section.splitlines()[0]


def test_the_theory_page_names_every_test_of_the_theory():
    tree = ast.parse((ROOT / "tests" / "test_theory.py").read_text())
    written = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    assert written == set(re.findall(r"`tests/test_theory\.py::(\w+)`", THEORY))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_formulas_survive_markdown(page):
    """GitHub parses Markdown first: a backslash before punctuation, a star, or an underscore after it would be lost."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    blocks = re.findall(r"\$\$(.*?)\$\$", text, flags=re.S)
    rest = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    assert rest.count("$") % 2 == 0
    inline = re.findall(r"\$([^$]*)\$", rest)
    assert page.name != "theory.md" or (len(blocks) > 40 and len(inline) > 100)
    for formula in blocks + inline:
        assert not re.search(r"\\[^a-zA-Z]|\*|[^\w]_|<|>", formula), formula
        words = re.findall(r"\\left\b|\\right\b|[{}]", formula)
        assert words.count("{") == words.count("}") and words.count("\\left") == words.count("\\right"), formula
    between = rest.split("$")[::2]  # GitHub does not treat a dollar next to a letter or digit as a delimiter
    assert not [t for t in between[1:] if re.match(r"\w", t)] + [t for t in between[:-1] if re.search(r"\w$", t)]
    for formula in inline:
        assert "\n" not in formula and formula == formula.strip(), formula
    for line in rest.splitlines():
        assert not (line.startswith("|") and any("|" in f for f in re.findall(r"\$([^$]*)\$", line))), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_point_to_existing_files_and_headings(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
