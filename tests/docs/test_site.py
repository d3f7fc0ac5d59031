"""The documentation's site, without building it: everything is on a page, and every page holds what it says."""

import json
import re
import subprocess
import sys

import pytest

from diffusion import cli
from diffusion.training.build import SYSTEMS
from docs.site import check, commands, configurations, notebooks, option_pages, pages, picture, reference, said
from docs.site.links import ROOT, rewritten

SITE = pages.assembled()
PAGES = {path: (ROOT / path).read_text(encoding="utf-8") for path in ("README.md", *pages.written())}


# --- everything has a page --------------------------------------------------------------------------------


def test_every_public_name_has_a_docstring():
    assert len(reference.summaries()) > 900
    assert reference.undocumented() == []


def test_every_name_of_the_top_level_is_in_the_reference():
    import diffusion

    assert set(reference.homes()) == set(diffusion.__all__) - {"__version__"}
    assert all(f"[`diffusion.{name}`]" in SITE.pages["api/index.md"] for name in reference.homes())
    for module in reference.modules().values():
        assert module.page in SITE.pages, module.name
        for name in module.exported if module.name != "diffusion" else []:
            assert f"{module.name}.{name}" in reference.addresses()
            assert f"| [`{name}`]" in SITE.pages[module.page] or not module.package


def test_every_option_has_help_and_is_on_its_page():
    assert commands.without_help() == []
    count = 0
    for command in commands.commands():
        page = SITE.pages[f"commands/{command.split()[0]}.md"]
        for action in commands.actions(commands.parser_of(command)):
            count += 1
            assert f"`{(action.option_strings or [action.dest.upper()])[0]}`" in page, f"{command} {action.dest}"
    for system in SYSTEMS:
        for action in commands.fit_actions(system):
            count += 1
            assert f"`--{action.dest}`" in SITE.pages["commands/fit.md"], action.dest
    assert count > 400


def test_every_command_and_every_part_has_its_place():
    assert {f"commands/{name}.md" for name in cli.COMMANDS} <= SITE.pages.keys()
    assert option_pages.arguments_without_help() == []
    kinds = [kind.__name__ for kinds in option_pages.parts().values() for kind in kinds]
    assert len(kinds) > 70 and {"UNet", "DDIM", "Cosine", "V", "ClassifierFree", "Digits", "Muon"} <= set(kinds)
    assert all(f"### {name}\n" in SITE.pages["commands/parts.md"] for name in kinds)


def test_every_configuration_has_a_page_with_its_settings_and_a_command_that_parses():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) > 50 and [c.name for c in configurations.configurations()] == [f.stem for f in files]
    for file in files:
        page = SITE.pages[f"configurations/{file.stem}.md"]
        settings = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert "\n".join(settings).strip() in page
        assert "```bash" in page or file.stem in configurations.DEFAULTS


def test_every_metric_exit_code_and_variable_is_listed():
    assert all(f"`{key}`" in PAGES["docs/metrics.md"] for key in option_pages.metrics())
    codes = PAGES["docs/lookup/exit_codes.md"]
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", codes, re.M)} == {0, 1, 2, 130, cli.UNREAD, 143}
    read = (
        r"environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*[\"']([A-Z_]+)[\"']|[\"']((?:SM|SLURM|DIFFUSION)_[A-Z_]+)[\"'] in"
    )
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "diffusion").rglob("*.py"))
    names = {a or b for a, b in re.findall(read, sources)}
    assert len(names) > 15 and {"DIFFUSION_DATA", "SM_HPS", "WORLD_SIZE"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in PAGES["docs/lookup/environment.md"]] == []


def test_every_notebook_is_a_page_and_says_whether_it_was_executed():
    assert len(notebooks.names()) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for name in notebooks.names():
        page = SITE.pages[f"notebooks/{name}.md"]
        assert page.startswith("# ") and re.search(r"^    (Executed|Not executed)", page, re.M)


def test_a_copy_of_a_notebook_counts_only_while_its_cells_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "COPIES", tmp_path)
    book = {"cells": notebooks.read(notebooks.FOLDER / "noise.ipynb"), "metadata": {}}
    shown = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}}
    book["cells"][1]["outputs"] = [shown, {"output_type": "stream", "text": ["10%\r100%\n", "\x1b[31mred\x1b[0m\n"]}]
    added = {"cell_type": "code", "source": 'preset = "smoke"', "metadata": {}, "outputs": []}
    notebooks.keep("noise", "smoke", book | {"cells": [*book["cells"], added]})
    page, drawn = notebooks.page("noise", {})
    assert "tiny models" in page and "````text\n100%\nred\n````" in page and list(drawn) == ["notebooks/noise/1.png"]
    assert notebooks.kept("noise")[1] == "smoke"
    other = [{**book["cells"][0], "source": "# Another"}, *book["cells"][1:]]
    monkeypatch.setattr(notebooks, "read", lambda path: other)
    assert notebooks.kept("noise")[1] == ""


# --- the pages hold what they say ---------------------------------------------------------------------------


def test_every_link_leads_somewhere_and_every_picture_has_a_text():
    found = check.links(SITE) + check.pictures(SITE)
    assert found.faults == [] and found.counts["links"] > 1000 and found.counts["pictures"] > 40


def test_every_page_is_reached():
    assert check.unreached(SITE) == []


def test_every_block_of_python_compiles():
    blocks = [block for page, text in PAGES.items() for block in said.blocks(text, page)]
    assert [wrong for block in blocks if (wrong := said.broken(block))] == []
    assert sum(block.language == "python" for block in blocks) > 12
    assert all(block.why for block in blocks if block.mark)


def test_every_command_line_parses_except_those_of_fit():
    """Those of `fit` take half a second each; the build of the site parses them."""
    lines = [(b, w) for p, text in PAGES.items() for b in said.blocks(text, p) for w in said.command_lines(b)]
    assert len(lines) > 150
    assert [(b.where, w, f) for b, w in lines if w[0] != "fit" and (f := said.fault(w))] == []


# --- each check finds what it is for ------------------------------------------------------------------------


def of_text(site):
    return check.commands(site.pages)


PLANTED = [
    (check.links, "[there](nothing.md)", "nothing.md leads nowhere"),
    (check.links, "[there](theory.md#nothing-here)", "there is no such heading"),
    (check.links, '<a href="nothing.html">x</a>', "nothing.html leads nowhere"),
    (check.pictures, "![](images/digits.png)", "without an alternative text"),
    (check.pictures, '<img src="images/digits.png" width="10">', "without an alternative text"),
    (of_text, "```bash\ndiffusion sample RUN --nn 3\n```", "--nn"),
    (of_text, "```bash\ndiffusion smple RUN\n```", "unknown command 'smple'; did you mean 'sample'"),
    (of_text, "```bash\nOMP_NUM_THREADS=1 diffusion film RUN --n x\n```", "--n"),
    (of_text, "```bash\ntorchrun -m diffusion fit -c configs/mnist.yaml --model.lrr 1\n```", "lrr"),
    (of_text, "```bash\ndiffusion fit -c configs/mnist.yaml --model.net.width x\n```", "width"),
    (of_text, "```python\nx = (\n```", "was never closed"),
]


@pytest.mark.parametrize("rule, text, found", PLANTED, ids=[found for *_, found in PLANTED])
def test_a_planted_fault_is_found(rule, text, found):
    site = pages.Site({"theory.md": "# Theory\n\n## What is here\n", "page.md": f"# A page\n\n{text}\n"}, SITE.files)
    (fault,) = rule(site).faults
    assert found in fault and "page.md" in fault


def test_a_page_that_nothing_leads_to_is_found():
    lost = SITE.pages | {"source/lost.md": "# Lost\n"}
    assert check.unreached(pages.Site(lost, SITE.files)) == ["source/lost.md"]


def test_faults_of_built_pages_are_found(tmp_path):
    """A link, an anchor, a mute picture, a script of another address, weight at once and in all."""
    (tmp_path / "big.png").write_bytes(bytes(check.HEAVIEST))
    (tmp_path / "later.png").write_bytes(bytes(check.WHOLE - check.HEAVIEST))
    (tmp_path / "film.gif").write_bytes(bytes(check.WHOLE))
    (tmp_path / "good.html").write_text('<h1 id="a">A</h1><a href="#a">a</a><img alt="film" src="film.gif">')
    assert check.built(tmp_path).faults == []
    (tmp_path / "bad.html").write_text(
        '<a href="gone.html">x</a><a href="good.html#b">x</a><script src="https://elsewhere/x.js"></script>'
        '<img src="big.png"><img src="later.png" alt="y" loading="lazy">'
    )
    faults = "\n".join(check.built(tmp_path).faults)
    for found in ("gone.html leads nowhere", "good.html#b: there is no such place", "loads https://elsewhere/x.js",
                  "without an alternative text: big.png", "opens with 1.00 MB", "shows 1.50 MB"):  # fmt: skip
        assert found in faults
    assert len(faults.splitlines()) == 6


def test_a_mark_leaves_a_block_out():
    marked = "<!-- not checked: of another program -->\n```bash\ndiffusion nothing\n```\n"
    assert check.commands({"page.md": marked}).counts["commands"] == 0
    assert check.commands({"page.md": marked.partition("\n")[2]}).counts["commands"] == 1


def test_names_and_files_in_a_page_become_links():
    names = {"diffusion.noise.Cosine": "api/noise.md#diffusion.noise.continuous.Cosine"}
    text = "`diffusion.noise.Cosine`, `configs/mnist.yaml`, [here](../CONTRIBUTING.md#setup), [f](../diffusion/cli.py)"
    assert rewritten(text, "docs/theory.md", names) == (
        "[`diffusion.noise.Cosine`](api/noise.md#diffusion.noise.continuous.Cosine), "
        "[`configs/mnist.yaml`](configurations/mnist.md), [here](contributing.md#setup), "
        "[f](source/diffusion/cli.py.md)"
    )
    assert rewritten("```\n`configs/mnist.yaml`\n```", "docs/theory.md", names) == "```\n`configs/mnist.yaml`\n```"
    assert rewritten("[`configs/mnist.yaml`](../configs)", "docs/theory.md", names) == (
        "[`configs/mnist.yaml`](configurations/index.md)"
    )
    with pytest.raises(FileNotFoundError, match="docs/gone.md: no such file"):
        rewritten("[gone](gone.md)", "docs/theory.md", names)


@pytest.mark.slow
def test_the_picture_of_the_whole_is_that_of_the_program():
    """A process of its own, since what is imported and kept already is part of no way."""
    done = subprocess.run(
        [sys.executable, "-c", "from docs.site.picture import traced; print('TREES', traced())"],
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.partition("TREES ")[2].strip() == picture.TRACE.read_text().strip()


def test_the_picture_shows_both_ways_with_links_to_the_classes():
    page = SITE.pages["together.md"]
    for way in ("batch", "sample"):
        names = [name for _, name in json.loads(picture.TRACE.read_text())[way]]
        assert len(names) > 15 and {"diffusion.denoiser.base.Denoiser"} <= set(names)
        missing = [n for n in names if n in reference.addresses() and f'#{n}"' not in page]
        assert missing == [] and sum(n in reference.addresses() for n in names) >= len(names) - 2
