"""A block: 1,024 items of the source, which become one shard, the marks of its images and a record of each item.

A block depends on its items, the form and the settings alone. Its record file is written last, so a block is finished
if and only if that file exists.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.preparing.images.decode import Picture, decode, of_array
from diffusion.preparing.images.marks import Marks, marks
from diffusion.preparing.images.resize import fit
from diffusion.preparing.images.window import reduced
from diffusion.preparing.items import Item, Refused
from diffusion.preparing.settings import Form, Settings
from diffusion.preparing.sources.beside import facts
from diffusion.preparing.sources.reading import read
from diffusion.support.files import atomic

WORK = ".work"
AT = None  # in a worker that looks for an item that ends it: shared memory for the number of the item in work


def shard(out: Path, number: int) -> Path:
    """The file of a block's images."""
    return out / "shards" / f"{number:06d}.npy"


def record(out: Path, number: int) -> Path:
    """The file of a block's records, one line of JSON per item; the first line is about the block."""
    return out / WORK / "blocks" / f"{number:06d}.jsonl"


def make(number: int, items: Sequence[Item], form: Form, settings: Settings, lost: dict[int, str]) -> tuple[int, int]:
    """Write a block; returns the numbers of kept and refused images.

    Args:
        lost: reasons of items that are known to end the process that decodes them, by their place in the block.
    """
    stored, records = [], []
    for k, item in enumerate(items):
        if AT is not None:
            AT.value = k
        found, image = one(item, form, settings, lost.get(k))
        records.append(found)
        if image is not None:
            stored.append(image)
    out, name = settings.out, shard(settings.out, number)
    about = {"images": len(stored), "sha256": None}
    if stored:
        with atomic(name) as temporary:
            with open(temporary, "wb") as file:
                np.save(file, np.stack(stored))
            about["sha256"] = hashlib.sha256(temporary.read_bytes()).hexdigest()
    with atomic(record(out, number).with_suffix(".npz")) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **marks(stored, form.channels)._asdict())
    with atomic(record(out, number)) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (about, *records)))
    return len(stored), len(records) - len(stored)


def one(item: Item, form: Form, settings: Settings, lost: str | None = None) -> tuple[dict, np.ndarray | None]:
    """The record of an item, and its stored image (C, H, W) or None where it is refused."""
    found = {"file": item.name, "sha256": None, "bytes": max(0, item.bytes)}
    found |= {"width": None, "height": None, "mode": None, "decision": "refused", "row": None}
    notes = list(item.notes)
    try:
        found |= facts(item, notes)
        if lost or item.problem:
            raise Refused(lost or item.problem)
        data = read(item.place)
        content = data if isinstance(data, bytes) else data.tobytes()
        digest = hashlib.sha256(content).digest()
        found |= {"sha256": digest.hex(), "bytes": len(content)}
        picture = opened(data, form, settings)
        found |= {"width": picture.width, "height": picture.height, "mode": picture.mode}
        picture.notes[:0] = notes
        notes = picture.notes
        at = tuple(int.from_bytes(digest[4 * k : 4 * k + 4], "big") / 2**32 for k in (0, 1))
        image = fit(picture, form, settings, at)
        found["decision"] = "kept"
    except Refused as reason:
        found["reason"], image = str(reason), None
    if notes:
        found["notes"] = notes
    return found, image


def opened(data: bytes | np.ndarray | Image.Image, form: Form, settings: Settings) -> Picture:
    """The picture of what was read; a JPEG at a lower resolution where that is high enough."""
    if isinstance(data, np.ndarray):
        return of_array(data)
    if isinstance(data, Image.Image):
        return Picture(data, *data.size, data.mode, [])
    lower = None if settings.linear else lambda w, h: reduced((w, h), form, settings.crop)
    return decode(data, lower)


def lines(out: Path, number: int) -> Iterator[dict]:
    """A block's line about itself, then the record of each item."""
    with open(record(out, number), encoding="utf-8") as file:
        yield from map(json.loads, file)


def marks_of(out: Path, number: int) -> Marks:
    """The marks of a block's images."""
    with np.load(record(out, number).with_suffix(".npz"), allow_pickle=False) as file:
        return Marks(**{name: file[name] for name in Marks._fields})


def finished(out: Path, number: int) -> bool:
    """Whether a block is complete."""
    return record(out, number).exists()
