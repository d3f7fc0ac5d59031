"""Notices of the package are lines of the command; warnings of others remain as Python shows them."""

import re
import sys
import warnings

import pytest
from tqdm.auto import tqdm

from diffusion.cli import main
from diffusion.commands import demo, doctor, sample
from diffusion.support.console import Notice, in_one_line


@pytest.mark.parametrize("command", [demo, doctor, sample], ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_command_prints_a_notice_as_its_line(command, monkeypatch, capsys):
    def said(argv):
        warnings.warn("cores are busy", Notice, stacklevel=1)
        warnings.warn("of another package", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(command, "main", said)
    name = command.__name__.rpartition(".")[2]
    with pytest.warns(UserWarning, match="of another package"):
        assert main([name]) == 0
    assert capsys.readouterr().err == f"diffusion {name}: cores are busy\n"


def test_a_notice_is_not_written_into_a_progress_bar(capsys):
    with in_one_line("diffusion sample"), tqdm(total=2, file=sys.stderr) as bar:
        bar.update()
        warnings.warn("cores are busy", Notice, stacklevel=1)
    assert "diffusion sample: cores are busy" in re.split(r"[\r\n]", capsys.readouterr().err)
