"""One-line parser errors of `diffusion fit`, with suggestions of valid names."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from torch import nn

from diffusion import nets
from diffusion.data import ImageData
from diffusion.support import specs
from diffusion.support.specs import concrete, suggest

PARSER = ("ArgumentError", "ArgumentTypeError", "NSKeyError", "ParserError")  # jsonargparse's errors
HIDDEN = ("help", "print_config", "print_shtab", "optimizer", "lr_scheduler")  # keys that are not worth a suggestion

INNER = re.compile(  # the innermost argument, and what it takes
    r"""Parser key "([\w.]+)": Expected a (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[([^\]]*)\])\."""
    r" Got value: (.*?)(?: - Expected|$)"
)


class Refused(ValueError):
    """A command line or configuration that the parser refuses."""


@contextmanager
def explained(parser: ArgumentParser, system: type) -> Iterator[None]:
    """Context in which a parser error becomes `Refused`, with suggestions from that parser.

    Args:
        system: the system to train, whose annotations give the types of its parts.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in PARSER:
            raise
        raise Refused(shorten(" ".join(str(error).split()), keys(parser), system)) from error


def keys(parser: ArgumentParser) -> list[str]:
    """The dotted names of all options of a parser."""
    return [action.dest for action in parser._actions if action.dest not in HIDDEN]


def shorten(text: str, known: list[str], system: type) -> str:
    """The core of a nested jsonargparse message, with suggestions of valid names."""
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", text)  # its words around ours
    key = found.group(1) if (found := re.search(r'Parser key "([^"]*)"', text)) else ""
    if found := re.search(r"class_path '([\w.]+)'[^']*(?:Option|Key) '([^']+)' is not accepted", text):
        path, option = found.groups()
        return f"{key}: {path.rpartition('.')[2]} has no option {option!r}" + among(option, arguments(path))
    if found := re.search(r"(?:Key|Option|Nested key) '([^']+)' is not (?:expected|accepted)", text):
        return unknown(found.group(1), known)
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown(".".join(found.groups()), known)
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return unknown(found.group(1).partition("=")[0], known)
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        name, names = found.group(1), classes(key, system)
        return f"{key}: there is no class {name!r}{suggest(name, names)}; there are: {', '.join(names)}"
    if found := INNER.search(text):
        inner, kind, choices, got = found.groups()
        wanted = kind or " or ".join(re.findall(r"'([^']*)'", choices))
        return f"{key if key == inner else f'{key}.{inner}'}: wanted {wanted}, got {got!r}"
    if wanted := re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", text):
        got = found.group(1) if (found := re.search(r"(?:Got value|Given value): (.*?)(?: Subtypes|$)", text)) else "?"
        kinds = " or ".join(dict.fromkeys("nothing" if w == "NoneType" else w for w in wanted))
        return f"{key}: wanted {kinds}, got {got!r}"
    return text


def unknown(option: str, known: list[str]) -> str:
    """The message for an unknown option, with the names at the deepest level that exists."""
    head, name = "", option.lstrip("-")
    while "." in name and (inside := f"{head}{name.partition('.')[0]}.") and any(k.startswith(inside) for k in known):
        head, name = inside, name.partition(".")[2]
    name = name.partition(".")[0]
    there = dict.fromkeys(key.removeprefix(head).partition(".")[0] for key in known if key.startswith(head))
    return f"there is no option {option!r}" + among(name, list(there))


def among(word: str, words: list[str]) -> str:
    """The closest valid names, or all of them."""
    near = suggest(word, words)
    return near if near or not words else f"; there are: {', '.join(words)}"


def arguments(path: str) -> list[str]:
    """The argument names of a class given by import path."""
    module, _, name = path.rpartition(".")
    return list(specs.arguments(getattr(import_module(module), name))) if module else []


def classes(key: str, system: type) -> list[str]:
    """The short names of the classes that a configuration key takes."""
    if key.partition(".")[0] == "data":
        kind: Any = ImageData
    else:
        kind, name = system, ""
        for name in key.split(".")[1:]:  # model.objective.times: an argument of an argument of the system
            owner, kind = kind, get_type_hints(kind.__init__).get(name)
        if kind is nn.Module:  # any network: those made for this system
            default = inspect.signature(owner.__init__).parameters[name].default
            return list(nets.__all__) if default is inspect.Parameter.empty else [type(default).__name__]
    names = made_of(kind)
    if names == [getattr(kind, "__name__", "")]:  # no choice here: jsonargparse means an argument of its arguments
        names = sorted({name for hint in get_type_hints(kind.__init__).values() for name in made_of(hint)})
    return names


def made_of(kind: Any) -> list[str]:
    """The short names of the classes that an annotation admits; of Hint | None, those of Hint."""
    kinds = [k for k in (kind, *get_args(kind)) if inspect.isclass(k) and k.__module__.startswith("diffusion.")]
    return sorted(c.__name__ for k in kinds for c in concrete(k))
