"""Notices of the package are lines of the command; warnings of others remain as Python shows them."""

import warnings

import pytest

from diffusion.cli import main
from diffusion.commands import demo, doctor, sample
from diffusion.support.console import Notice


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
