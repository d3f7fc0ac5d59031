"""The lessons of docs/learn: their code runs and prints what the page shows, and their links and pictures exist."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
LEARN = ROOT / "docs" / "learn"
LESSONS = sorted(LEARN.glob("[0-9]_*.md"))
SLOW = "4578"  # lessons whose code takes more than two seconds of one core
NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")


def blocks(page):
    """The blocks of Python of a page in order, each with the output shown below it, or None."""
    found = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page.read_text(), flags=re.M | re.S)
    return [(code, shown or None) for code, shown in found]


def differs(printed, shown):
    """Why two outputs are not the same: numbers may differ by one unit of their last digit, words not at all."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        return f"printed\n{printed}\nthe page shows\n{shown}"
    pairs = zip(NUMBER.finditer(printed), NUMBER.finditer(shown), strict=True)
    far = [(a[0], b[0]) for a, b in pairs if abs(float(a[0]) - float(b[0])) > 1.01 * 10.0 ** -len(b[1] or "")]
    return f"{far} in\n{printed}" if far else ""


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_there_are_eight_lessons_and_the_index_lists_them_in_order():
    assert [int(p.name[0]) for p in LESSONS] == list(range(1, 9))
    listed = re.findall(r"\]\((\d_\w+\.md)\)", (LEARN / "index.md").read_text())
    assert listed == [p.name for p in LESSONS]


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.name[0] in SLOW else ()) for p in LESSONS]
)
def test_code_of_a_lesson_prints_what_the_page_shows(page):
    found, names = blocks(page), {}
    assert len(found) >= 2 and all(shown for _, shown in found)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for code, shown in found:
            assert max(map(len, code.splitlines())) <= 120
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, page.name, "exec"), names)  # noqa: S102
            assert not differs(out.getvalue(), shown), differs(out.getvalue(), shown)


def test_outputs_that_differ_are_found():
    assert not differs("a 0.51 b -1\n", "a 0.52 b -1")
    assert differs("a 0.51", "a 0.53") and differs("a 0.5", "b 0.5") and differs("1 2", "1")


@pytest.mark.parametrize("page", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_short_and_leads_on(page):
    text = page.read_text()
    k = LESSONS.index(page)
    prose = re.sub(r"^```.*?^```|^code: .*?$|\$\$.*?\$\$", "", text, flags=re.M | re.S)
    assert 350 <= len(prose.split()) <= 950
    assert text.startswith(f"# {k + 1}. ") and "**You will know**" in text and "## Try next" in text
    assert "**Answers.**" in text and "](../../notebooks/" in text and "](../theory.md#" in text
    last = text.strip().splitlines()[-1]
    for other in (k - 1, k + 1):
        assert not 0 <= other < len(LESSONS) or f"]({LESSONS[other].name})" in last


@pytest.mark.parametrize("page", [LEARN / "index.md", *LESSONS], ids=lambda p: p.stem)
def test_anchors_of_a_lesson_are_headings(page):
    for target, anchor in re.findall(r"\]\(([\w./]+\.md)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", (page.parent / target).read_text(), flags=re.M)
        assert anchor in map(slug, headings), f"{target}#{anchor}"


@pytest.mark.parametrize("page", LESSONS, ids=lambda p: p.stem)
def test_pictures_of_a_lesson_are_small_and_described(page):
    found = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
    assert found
    for words, target in found:
        path = page.parent / target
        assert len(words.split()) >= 10 and path.stat().st_size < 100_000
        assert Image.open(path).width >= 800


@pytest.mark.slow
def test_the_script_makes_every_picture_of_the_lessons(tmp_path):
    shown = {name for page in LESSONS for name in re.findall(r"images/(learn_\w+\.png)", page.read_text())}
    runpy.run_path(str(LEARN / "pictures.py"))["main"](tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == shown
    for path in tmp_path.iterdir():
        assert Image.open(path).size == Image.open(ROOT / "docs" / "images" / path.name).size
