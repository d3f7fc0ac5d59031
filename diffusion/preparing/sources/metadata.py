"""Columns about images: metadata.csv and metadata.jsonl with a column file_name, as of the Hub's image folders."""

import csv
import io
import json
import math
from typing import NamedTuple

from diffusion.preparing.items import LABELS, TEXTS, Refused
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources.folders import Entry
from diffusion.preparing.sources.reading import read

NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"


class Row(NamedTuple):
    """What a table says about an image."""

    label: str | None = None
    caption: str | None = None
    targets: tuple[float, ...] | None = None
    split: int | None = None


class Table:
    """The rows of all tables of a source, by the path of the image.

    Raises:
        ValueError: a column that was asked for is in no table.
    """

    def __init__(self, tables: dict[str, list[dict]], settings: Settings, problems: dict[str, str]) -> None:
        self.names, self.problems = set(tables), problems
        self._rows: dict[str, tuple[dict, str]] = {}
        for name, rows in tables.items():
            folder = name.rpartition("/")[0]
            for row in rows:
                path = str(row[FILE]).replace("\\", "/").removeprefix("./")
                self._rows.setdefault(f"{folder}/{path}" if folder else path, (row, name))
        columns = dict.fromkeys(c for row, _ in self._rows.values() for c in row if isinstance(c, str) and c != FILE)
        self.labels = chosen("label", settings.label, list(columns), LABELS, ("folders",))
        self.captions = chosen("caption", settings.caption, list(columns), TEXTS)
        self.targets = settings.targets
        if missing := [c for c in settings.targets if c not in columns]:
            raise ValueError(f"--targets: no column {missing[0]!r}; the metadata have {', '.join(columns) or 'none'}")
        taken = {self.labels, self.captions, *self.targets}
        self.columns = tuple(c for c in columns if c not in taken and self._numeric(c))
        self._used: set[str] = set()

    def row(self, name: str) -> Row:
        """What is known of an image."""
        if name not in self._rows:
            return Row()
        self._used.add(name)
        row, _ = self._rows[name]
        label, caption = row.get(self.labels), row.get(self.captions)
        values = tuple(number(row.get(column)) for column in self.targets) if self.targets else None
        return Row(_text(label), _text(caption), values)

    def absent(self) -> list[tuple[str, str]]:
        """(image, table) of rows whose image is not there; every row must have been asked for before."""
        return [(name, table) for name, (_, table) in self._rows.items() if name not in self._used]

    def _numeric(self, column: str) -> bool:
        values = [row[column] for row, _ in self._rows.values() if row.get(column) not in (None, "")]
        return bool(values) and all(math.isfinite(number(v)) for v in values[:100])


def chosen(option: str, word: str, columns: list[str], usual: tuple[str, ...], also: tuple[str, ...] = ()) -> str:
    """The column for a label or a caption; empty for none.

    Raises:
        ValueError: there is no such column.
    """
    if word == "auto":
        return next((c for c in usual if c in columns), "")
    if word in ("none", *also):
        return ""
    if word not in columns:
        raise ValueError(f"--{option}: no column {word!r}; the source has {', '.join(columns) or 'no columns'}")
    return word


def number(value: object) -> float:
    """A number; nan if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def read_tables(entries: list[Entry], settings: Settings) -> Table:
    """The tables of metadata; one that cannot be read is a problem, as is a row without a file's name."""
    tables, problems = {}, {}
    for entry in entries:
        try:
            text = read(entry.place).decode("utf-8-sig")
            rows = list(csv.DictReader(io.StringIO(text, newline=""))) if entry.name.lower().endswith(".csv") else []
            if not entry.name.lower().endswith(".csv"):
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (Refused, ValueError, csv.Error) as error:
            problems[entry.name] = f"metadata, but cannot be read: {error}"
            continue
        good = [row for row in rows if isinstance(row, dict) and row.get(FILE)]
        if len(good) < len(rows):
            problems[entry.name] = f"metadata; {len(rows) - len(good)} of its rows have no {FILE}"
        tables[entry.name] = good
    return Table(tables, settings, problems)
