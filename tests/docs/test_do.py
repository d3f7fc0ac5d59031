"""The how-to pages: every page is in the list, and the parts of the page on own parts work.

`test_site.py` and the build of the site parse the command lines of all pages.
"""

import re
import sys
from pathlib import Path

import pytest

from diffusion.cli import main

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "do"


def test_every_page_is_listed():
    listed = set(re.findall(r"\]\((\w+\.md)\)", (FOLDER / "index.md").read_text()))
    assert listed == {page.name for page in FOLDER.glob("*.md")} - {"index.md"} and len(listed) > 10


@pytest.mark.slow
def test_the_parts_of_the_page_pass_their_check(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (FOLDER / "own_part.md").read_text(), flags=re.S)[1]
    (tmp_path / "own_part_of_the_docs.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["check", "--sampler", "own_part_of_the_docs.Walk"]) == 0, capsys.readouterr().out
    part = sys.modules.pop("own_part_of_the_docs")
    import torch

    net = part.Small(channels=1, width=8, num_classes=3)
    assert net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 2])).shape == (2, 1, 8, 8)
