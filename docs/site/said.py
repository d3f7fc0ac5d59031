"""What the pages tell readers to type: command lines, which must parse, and Python, which must compile.

A comment on the line before a block, <!-- not checked: why -->, leaves it out.
"""

import contextlib
import io
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diffusion import cli
from diffusion.support.specs import arguments, named, suggest
from diffusion.training.build import system_of
from diffusion.training.suited import suited
from docs.site import commands, option_pages
from docs.site.links import ROOT

FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>not checked): (?P<why>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)``` *$",
    re.M | re.S,
)
LAUNCHED = re.compile(
    r"^(?:\w+=\S+ )*(?:(?:torchrun|python|accelerate launch)\b.*? -m (?:-- )?diffusion|diffusion)(?=\s|$)"
)
OWN = re.compile(r"my\.\w+|My[A-Z]\w*")  # classes of the reader's own
FOREIGN = ("import",)  # whose further options are flags of other programs


class Block(NamedTuple):
    """A block of code of a page: its language, its text, its first line, and whether it may be run and checked."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    why: str

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.page}:{self.line}"


def blocks(text: str, page: str = "") -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(
            page, text.count("\n", 0, m.start("indent")) + 1, m["language"], m["text"], m["mark"] or "", m["why"] or ""
        )
        for m in FENCE.finditer(text)
    ]


def lines_of(block: Block) -> Iterator[list[str]]:
    """The words of each command line of `diffusion` in a block, without the name of the program."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s(?:&&|;|\|)\s|;\s", re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))):
            if found := LAUNCHED.match(part.strip()):
                yield shlex.split(part.strip()[found.end() :])


def command_lines(block: Block) -> list[list[str]]:
    """The command lines that a block tells readers to type."""
    shell = block.language in ("bash", "sh", "console", "shell")
    return list(lines_of(block)) if shell and block.mark != "not checked" else []


# --- command lines ----------------------------------------------------------------------------------------


def fault(words: list[str]) -> str:
    """What is wrong with a command line; "" if its command would accept it."""
    try:
        return parsed(words)
    except Exception as error:  # of argparse, jsonargparse, or the command
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def parsed(words: list[str]) -> str:
    """Parse a command line as its command does.

    Raises:
        Exception: the command reports an error.
    """
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("--help", "--version", "-h", "-V") or {"--help", "-h"} & set(words):
        return ""
    command = cli.ALIASES.get(words[0], words[0])
    if command not in cli.COMMANDS:
        return f"unknown command {words[0]!r}{suggest(words[0], list(cli.COMMANDS))}"
    if command == "fit":
        return parsed_fit(words[1:])
    if command == "doctor":
        return "" if not words[1:] else "doctor takes no options"
    if command == "describe":  # its further options are those of fit
        given = [w for w in words[1:] if w.endswith(".yaml")]
        rest = [w for w in words[1:] if w not in given and w not in ("-c", "--config")]
        return parsed_fit([w for g in given for w in ("-c", g)] + rest) if given else ""
    found = commands.reached([command, *words[1:]], parse=True)
    read, unknown = found.words
    if command == "demo":
        return parsed_fit(["-c", "configs/digits.yaml", *unknown])
    if unknown:
        return f"unknown words {unknown}"
    own = any(OWN.fullmatch(w) for w in words)
    further = [] if command in FOREIGN or own else [a for a in getattr(read, "arguments", {}) if a not in of_walks()]
    data = [a for a in getattr(read, "data", {}) if a not in of_data()]
    if further + data:
        return f"unknown option --{(further + data)[0]}{suggest((further + data)[0], [*of_walks(), *of_data()])}"
    return ""


@cache
def of_walks() -> set[str]:
    """The arguments of all samplers and guidances."""
    kinds = [k for option in ("--model.sampler", "--model.guidance") for k in option_pages.parts()[option]]
    return {name for kind in kinds for name in arguments(kind)}


@cache
def of_data() -> set[str]:
    """The arguments of all data sets."""
    return {name for kind in option_pages.parts()["--data"] for name in arguments(kind)}


@cache
def images() -> tempfile.TemporaryDirectory:
    """A folder with `photos`, a few prepared images, in place of the folders that pages speak of."""
    import numpy as np
    from PIL import Image

    import diffusion

    made = tempfile.TemporaryDirectory()
    Path(made.name, "images").mkdir()
    for k, picture in enumerate(np.arange(40 * 32 * 32 * 3).reshape(40, 32, 32, 3).astype("uint8")):
        Image.fromarray(picture).save(Path(made.name, "images", f"{k}.png"))
        Path(made.name, "images", f"{k}.txt").write_text(f"a {('red', 'blue')[k % 2]} {('disc', 'square')[k % 3 % 2]}")
    with contextlib.redirect_stderr(io.StringIO()):
        diffusion.prepare(Path(made.name, "images"), out=Path(made.name, "photos"), workers=1)
    return made


def parsed_fit(words: list[str]) -> str:
    """Parse the words of `diffusion fit`; files and folders that are not here are replaced by some that are."""
    words = [x for w in words for x in (w.split("=", 1) if w.startswith("--") and "=" in w else [w])]
    for k, (option, value) in enumerate(zip(words[:-1], words[1:], strict=True)):
        if option in ("-c", "--config") and not (ROOT / value).is_file():
            known = [part for part in Path(value).parts if (ROOT / "configs" / f"{part}.yaml").is_file()]
            words[k + 1] = f"configs/{known[0] if known else 'digits'}.yaml"
        if option in ("-c", "--config") and (ROOT / words[k + 1]).is_file():
            words[k + 1] = str(ROOT / words[k + 1])
        if option == "--data" and not is_set(value):
            words[k + 1] = str(Path(images().name, "photos"))
    if any(OWN.fullmatch(w) for w in words):
        return ""  # the reader's own classes are not here; tests/test_extension.py has some
    system = system_of(words)
    commands.parser_of_fit(system).parse_args(suited(words))
    return ""


@cache
def is_set(value: str) -> bool:
    """Whether the value of --data names a class."""
    if value.startswith(("s3://", "gs://", "http")) or "/" in value:
        return False
    try:
        return bool(named(value, option_pages.PARTS["--data"][0], "diffusion.data"))
    except ValueError:
        return False


def broken(block: Block) -> str:
    """The syntax error of a Python block, or ""."""
    if block.language != "python" or block.mark == "not checked":
        return ""
    try:
        compile(textwrap.dedent(block.text), block.where, "exec")
    except SyntaxError as error:
        return f"{block.where}: {error.msg} in line {error.lineno}"
    return ""
