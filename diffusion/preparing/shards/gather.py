"""What the finished blocks hold: marks of all kept images as arrays, and counts of all records."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion.preparing.images.marks import Marks
from diffusion.preparing.items import natural
from diffusion.preparing.settings import BLOCK, Form
from diffusion.preparing.shards.blocks import lines, marks_of, shard

REASONS = 1000  # refused files that are listed in the report


@dataclass
class Gathered:
    """The N kept images of all blocks, in canonical order, and counts of all items."""

    form: Form
    shards: list[dict]  # as in dataset.json
    marks: Marks
    item: np.ndarray  # (N,) int64: number of the item in the listing
    label: np.ndarray  # (N,) int64; -1 for none
    split: np.ndarray  # (N,) int8; -1 for none
    targets: np.ndarray  # (N, D) float32
    captions: int  # images that have one
    classes: tuple[str, ...]
    items: int
    refused: list[tuple[str, str]] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)  # of refusal, without their numbers
    notes: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)  # (width, height)
    modes: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.label)


def gather(out: Path, blocks: Sequence[int], form: Form, declared: Sequence[str], targets: int) -> Gathered:
    """Read the records and marks of all blocks.

    Args:
        declared: names of classes in the source's order; others follow in natural order.
        targets: numbers per image.
    """
    names: dict[str, int] = {}
    parts, numbers, labels, splits, values, captions, items = [], [], [], [], [], 0, 0
    shards, found = [], Gathered(form, [], None, *([None] * 4), 0, (), 0)
    for number in blocks:
        about, *records = lines(out, number)
        items += len(records)
        parts.append(marks_of(out, number))
        if about["images"]:
            shards.append({"file": f"shards/{shard(out, number).name}", **about})
        for k, line in enumerate(records):
            name = line.get("label")
            label = -1 if name is None else names.setdefault(name, len(names))
            found.notes.update(_kind(n) for n in line.get("notes", ()))
            if line["decision"] != "kept":
                found.reasons[_kind(line["reason"])] += 1
                if len(found.refused) < REASONS:
                    found.refused.append((line["file"], line["reason"]))
                continue
            numbers.append(number * BLOCK + k)
            labels.append(label)
            splits.append(line.get("split", -1))
            values.append(line.get("targets") or [np.nan] * targets)
            captions += "caption" in line
            found.sizes[line["width"], line["height"]] += 1
            found.modes[line["mode"]] += 1
    classes = [c for c in declared] + sorted(names.keys() - set(declared), key=natural)
    number_of = np.array([classes.index(name) for name in names] + [-1], np.int64)  # -1 stays -1
    found.shards, found.items, found.captions, found.classes = shards, items, captions, tuple(classes)
    found.label = number_of[np.array(labels, np.int64)] if labels else np.zeros(0, np.int64)
    found.item = np.array(numbers, np.int64)
    found.split = np.array(splits, np.int8)
    found.targets = np.array(values, np.float32).reshape(len(labels), targets)
    found.marks = Marks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    if not (found.label >= 0).any():
        found.classes = ()
    return found


def _kind(text: str) -> str:
    """A reason or a note without its numbers, so that equal kinds are counted together."""
    return "".join("N" if c.isdigit() else c for c in text).replace("NN", "N").replace("NN", "N").replace("NN", "N")


class Stored:
    """The stored images by their global row number, from memory-mapped shards."""

    def __init__(self, out: Path, shards: Sequence[dict]) -> None:
        self._out, self._shards = out, shards
        self._first = np.cumsum([0, *(s["images"] for s in shards)])
        self._open: tuple[int, np.ndarray] = (-1, np.zeros(0))

    def __len__(self) -> int:
        return int(self._first[-1])

    def __call__(self, row: int) -> np.ndarray:
        k = int(np.searchsorted(self._first, row, side="right")) - 1
        if self._open[0] != k:
            self._open = k, np.load(self._out / self._shards[k]["file"], mmap_mode="r")
        return self._open[1][row - self._first[k]]


def records(out: Path, blocks: Sequence[int]) -> Iterator[dict]:
    """The records of all items, in canonical order."""
    for number in blocks:
        found = lines(out, number)
        next(found)  # about the block
        yield from found
