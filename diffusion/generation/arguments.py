"""Arguments of classes by name: which there are, and text as the type that an argument is annotated with."""

import inspect
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from diffusion.support.specs import suggest


class UnknownArgument(ValueError):
    """A name that is no argument of the classes in question.

    Args:
        name: what came.
        kinds: the classes in words, e.g. "sampler DDIM".
        known: the names that they take.
    """

    def __init__(self, name: str, kinds: str, known: list[str]) -> None:
        super().__init__(f"unknown argument {name!r} ({kinds}){suggest(name, known) or f'; there are: {known}'}")
        self.name, self.kinds, self.known = name, kinds, known


def annotations(kind: type) -> dict[str, Any]:
    """The arguments of a class's constructor with their types."""
    return {name: p.annotation for name, p in inspect.signature(kind).parameters.items()}


def converted(name: str, value: Any, annotation: Any) -> Any:
    """A value as an argument's type: text is converted, to the first type of a union that it can be; all else stays.

    Raises:
        ValueError: the text is not of that type.
    """
    if not isinstance(value, str):
        return value
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise ValueError(f"{name}: wanted one of {', '.join(get_args(annotation))}, got {value!r}")
        return value
    if kinds := [kind for kind in get_args(annotation) if kind is not NoneType]:
        annotation = str if str in kinds else kinds[0]
    if annotation is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}: wanted true or false, got {value!r}")
        return value.lower() in ("true", "1")
    try:
        return annotation(value) if annotation in (int, float) else value
    except ValueError as error:
        raise ValueError(f"{name}: wanted {annotation.__name__}, got {value!r}") from error


def taken(given: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The given arguments that are among the known ones, converted to their types; and the others."""
    own = {name: converted(name, value, known[name]) for name, value in given.items() if name in known}
    return own, {name: value for name, value in given.items() if name not in known}
