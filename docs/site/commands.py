"""The commands with all their options, from the parsers that the commands themselves use."""

from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

from diffusion import cli
from diffusion.commands.options.parser import Parser
from diffusion.generation.editing.sheet import VERBS
from diffusion.training.build import SYSTEMS, DiffusionCLI, quiet

VERBLESS = ("fit", "doctor", "edit")  # whose options are not those of one argparse parser
OF_LIGHTNING = "trainer."  # options that Lightning's own documentation describes


class Reached(BaseException):
    """A command has reached its parser. Not an Exception, so that no command reports it as an error."""

    def __init__(self, parser: ArgumentParser, words: Any = None) -> None:
        self.parser, self.words = parser, words


class Option(NamedTuple):
    """An option of a command: its spellings, its value, its default and what it does."""

    names: tuple[str, ...]
    value: str
    default: str
    help: str
    note: str = ""  # Markdown after the help


@contextmanager
def stopping(parse: bool) -> Iterator[None]:
    """Within this context a command stops at its parser, raising `Reached`.

    Args:
        parse: read the words first, so that wrong ones are reported as usual.
    """

    def stop(parser: Parser, argv: list[str], *more: Any) -> None:
        raise Reached(parser, original(parser, argv, *more) if parse else None)

    original = ArgumentParser.parse_known_args
    with mock.patch.object(ArgumentParser, "parse_known_args", stop):
        yield


def reached(argv: list[str], parse: bool = False) -> Reached:
    """What a command line reaches: its parser and, if they are parsed, its words.

    Raises:
        Exception: the words are wrong.
    """
    with stopping(parse):
        try:
            code = cli.run([*argv, "--debug"])
        except Reached as found:
            return found
    raise ValueError(f"diffusion {' '.join(argv)} ended with {code} before it read its options")


@cache
def parser_of(command: str) -> ArgumentParser:
    """The argparse parser of a command, or of a verb as in "edit inpaint"."""
    return reached(command.split()).parser


@cache
def parser_of_fit(system: str) -> ArgumentParser:
    """The jsonargparse parser of `fit` for a system."""
    quiet()
    return DiffusionCLI(["--system", system, "--data", "Digits"]).parser


def actions(parser: ArgumentParser) -> list[Action]:
    """The options of a parser that its help shows, without --help itself."""
    return [a for a in parser._actions if a.help != SUPPRESS and a.dest != "help"]


def filled(action: Action, parser: ArgumentParser) -> str:
    """The help of an option on one line."""
    text = (action.help or "") % {"default": action.default, "prog": parser.prog, "type": "", "choices": ""}
    return " ".join(text.split())


def option(action: Action, parser: ArgumentParser) -> Option:
    """An option as the reference shows it."""
    names = tuple(action.option_strings) or (str(action.metavar or action.dest).upper(),)
    if action.nargs == 0:
        value = ""
    elif action.choices:
        value = " \\| ".join(map(str, action.choices))
    else:
        value = str(action.metavar or getattr(action.type, "__name__", "text")) if action.option_strings else ""
        value = {"int": "N", "float": "X", "Path": "PATH", "convert": "N,N,...", "str": "text"}.get(value, value)
    text = filled(action, parser)
    default = "" if action.default in (None, "", [], SUPPRESS, False) or "default" in text else f"`{action.default}`"
    return Option(names, value, default, text)


def commands() -> list[str]:
    """All commands with a parser of their own: `edit` once per verb."""
    found = [name for name in cli.COMMANDS if name not in VERBLESS]
    return [*found, *(f"edit {verb}" for verb in VERBS)]


def without_help() -> list[str]:
    """The options without help, as "command --option"."""
    found = [f"{c} {option(a, parser_of(c)).names[0]}" for c in commands() for a in actions(parser_of(c)) if not a.help]
    for system in SYSTEMS:
        for action in fit_actions(system):
            if not str(action.dest).startswith(OF_LIGHTNING) and not fit_help(action, system):
                found.append(f"fit --{action.dest} ({system})")
    return found


def fit_actions(system: str) -> list[Action]:
    """The options of `fit` for a system that stand for a setting."""
    return [
        a
        for a in parser_of_fit(system)._actions
        if SUPPRESS not in (a.help, a.default) and a.option_strings and a.dest not in ("help", "config")
    ]


def fit_help(action: Action, system: str) -> str:
    """The help of an option of `fit` on one line."""
    return " ".join(str(action.help or "").split())
