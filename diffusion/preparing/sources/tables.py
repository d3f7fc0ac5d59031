"""Parquet files with a column of encoded images as sources, as the Hub's data sets come."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.preparing.items import LABELS, TEXTS, Item, Listing
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources.extras import parquet
from diffusion.preparing.sources.metadata import chosen, number
from diffusion.support.extras import extra


@dataclass
class Table:
    """The rows of a Parquet file as a group of items."""

    path: str
    name: str
    column: str
    label: str
    caption: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]  # names of integer labels
    split: int | None
    starts: tuple[int, ...]  # first row of each row group, and the number of rows

    def __len__(self) -> int:
        return self.starts[-1]

    def items(self, start: int, stop: int) -> Sequence[Item]:
        found = []
        wanted = [c for c in dict.fromkeys((self.label, self.caption, *self.targets)) if c]
        for group, (first, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            if first >= stop or end <= start:
                continue
            table = parquet(self.path).read_row_group(group, columns=wanted).to_pydict() if wanted else {}
            for i in range(max(start, first), min(stop, end)):
                row = {c: table[c][i - first] for c in wanted}
                label, caption = row.get(self.label), row.get(self.caption)
                if isinstance(label, int) and 0 <= label < len(self.classes):
                    label = self.classes[label]
                elif self.classes:
                    label = None  # -1 stands for no label
                found.append(
                    Item(
                        f"{self.name}#{i}",
                        ("parquet", self.path, self.column, group, i - first),
                        label=None if label is None else str(label),
                        caption=None if caption is None else str(caption),
                        targets=tuple(number(row[c]) for c in self.targets) if self.targets else None,
                        split=self.split,
                    )
                )
        return found

    def facts(self) -> object:
        return [self.name, self.column, self.starts, self.split, self.label, self.caption, self.targets]


def parquet_listing(path: Path, name: str, split: int | None, settings: Settings) -> Listing:
    """The images in a Parquet file.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a damaged file, or one without a column of images.
    """
    file = parquet(str(path))
    schema, types = file.schema_arrow, extra("pyarrow", "data").types
    able = [f.name for f in schema if types.is_binary(f.type) or types.is_large_binary(f.type) or _encoded(f, types)]
    column = settings.key or next((c for c in ("image", "img", *able) if c in able), None)
    if column not in able:
        which = f" named {column}" if column else ""
        raise ValueError(f"{name}: wanted a column of image bytes{which}; it has {', '.join(schema.names)}")
    others = [f.name for f in schema if f.name != column]
    label = chosen("label", settings.label, others, (*LABELS, "fine_label"), ("folders",))
    caption = chosen("caption", settings.caption, others, TEXTS)
    if missing := [c for c in settings.targets if c not in others]:
        raise ValueError(f"--targets: no column {missing[0]!r}; {name} has {', '.join(others) or 'no others'}")
    numeric = [f.name for f in schema if types.is_floating(f.type) or types.is_integer(f.type)]
    left = tuple(c for c in numeric if c not in (label, caption, *settings.targets))
    starts = [0]
    for k in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(k).num_rows)
    classes = _classes(schema, label)
    group = Table(str(path), name, column, label, caption, settings.targets, classes, split, tuple(starts))
    return Listing([group], [], classes, settings.targets, left, "Parquet")


def _encoded(field, types) -> bool:
    """Whether a column holds structs with bytes, as the Hub's images do."""
    return types.is_struct(field.type) and any(
        f.name == "bytes" and (types.is_binary(f.type) or types.is_large_binary(f.type)) for f in field.type
    )


def _classes(schema, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel column, from the Hub's metadata."""
    try:
        given = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return tuple(map(str, given["names"] if given["_type"] == "ClassLabel" else ()))
    except (KeyError, TypeError, ValueError):
        return ()
