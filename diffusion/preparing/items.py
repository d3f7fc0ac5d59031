"""Items of a source: one image each, with the place of its bytes and all that is known of it, in canonical order."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

TEXTS = ("caption", "text")  # usual names of columns
LABELS = ("label", "class", "cls", "category")


class Refused(ValueError):
    """An image that cannot be used; the message says why."""


class Item(NamedTuple):
    """One image of a source.

    Args:
        name: path within the source, with slashes; the manifest's "file".
        place: where it is read, for `reading.read`: a kind and its arguments.
        bytes: its size if known, else -1.
        label: its class.
        caption: its text.
        targets: its numbers.
        split: 0 train, 1 test, None if the source has no split of its own.
        beside: places of small files about it, by kind: "txt", "caption", "cls", "json".
        problem: why it cannot be used, where the listing already knows.
        notes: remarks for the manifest.
    """

    name: str
    place: tuple
    bytes: int = -1
    label: str | None = None
    caption: str | None = None
    targets: tuple[float, ...] | None = None
    split: int | None = None
    beside: tuple[tuple[str, tuple], ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()


class Group(Protocol):
    """A run of items, which may be made when they are asked for."""

    def __len__(self) -> int: ...

    def items(self, start: int, stop: int) -> Sequence[Item]: ...

    def facts(self) -> object:
        """What identifies the run, as plain types: names and sizes."""


@dataclass
class Listed:
    """Items in a list."""

    found: list[Item]

    def __len__(self) -> int:
        return len(self.found)

    def items(self, start: int, stop: int) -> Sequence[Item]:
        return self.found[start:stop]

    def facts(self) -> object:
        digest = hashlib.sha256()
        for item in self.found:
            kept = item.name, item.bytes, item.label, item.caption, item.targets, item.split, item.problem
            digest.update(json.dumps(kept).encode())
        return digest.hexdigest()


@dataclass
class Listing:
    """All items of a source, and what else it holds.

    Args:
        groups: the items, in canonical order.
        skipped: (file, reason) of everything that is no image of the data set.
        classes: names of the classes where the source declares them, in its order.
        targets: names of the number columns in use.
        columns: names of number columns that are not in use.
        kind: a description of the source.
    """

    groups: list[Group]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    kind: str = "folder"

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def items(self, start: int, stop: int) -> list[Item]:
        """The items of a range of numbers."""
        found, first = [], 0
        for group in self.groups:
            n = len(group)
            if start < first + n and stop > first:
                found += group.items(max(0, start - first), min(n, stop - first))
            first += n
        return found

    def spread(self, count: int) -> list[Item]:
        """At most `count` items, evenly spaced."""
        n = len(self)
        chosen = range(n) if n <= count else [i * n // count for i in range(count)]
        return [item for i in chosen for item in self.items(i, i + 1)]

    @property
    def fingerprint(self) -> str:
        """A hash of the names and sizes of everything in the source."""
        whole = [group.facts() for group in self.groups], self.skipped, self.classes, self.targets
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def natural(name: str) -> tuple:
    """A key that sorts paths folder by folder and their numbers by value: a/2 before a/10."""
    return tuple(_natural(part) for part in name.split("/")), name


def _natural(part: str) -> list:
    pieces = re.split(r"([0-9]+)", part)
    return [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else p for i, p in enumerate(pieces)]


def plain(text: object) -> str:
    """Text for a terminal or a page: control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
