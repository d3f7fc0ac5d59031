"""docs/data.md: every option and every error message of `prepare`, each with its remedy."""

import ast
import re
from pathlib import Path

import pytest

from diffusion.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/data.md").read_text()
FLAT = " ".join(PAGE.replace("\\|", "|").split())


def messages():
    """The longest constant statement of each message that prepare raises, with its place."""
    for path in sorted((ROOT / "diffusion/preparing").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = node.exc.args[0]
                pieces = text.values if isinstance(text, ast.JoinedStr) else [text]
                found = [p.value for p in pieces if isinstance(p, ast.Constant) and isinstance(p.value, str)]
                statements = [part for piece in found for part in re.split(r"; |,? got |, e\.g\. ", piece)]
                if longest := max(statements, key=len, default="").strip(" :;,("):
                    yield f"{path.name}:{node.lineno}", longest


@pytest.mark.parametrize("place, text", list(messages()), ids=lambda value: str(value)[:40])
def test_every_message_is_on_the_page(place, text):
    assert " ".join(text.split()) in FLAT, place


def test_every_option_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--debug"}
    assert len(options) > 20
    assert {o for o in options if f"`{o}" not in PAGE} == set()
