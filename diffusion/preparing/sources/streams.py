"""Folders of MosaicML's streaming (MDS) and of litdata as sources: index.json and the shards that it names."""

import bz2
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.preparing.items import LABELS, TEXTS, Item, Listing, Refused
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources import samples
from diffusion.preparing.sources.archives import unpacked
from diffusion.preparing.sources.arrays import Array, layout_of, split_of
from diffusion.preparing.sources.extras import zstd
from diffusion.preparing.sources.folders import Entry
from diffusion.preparing.sources.metadata import chosen
from diffusion.preparing.sources.reading import read
from diffusion.preparing.sources.samples import Shard

INDEX = "index.json"
SHARDS = r".*\.mds(\.\w+)?|chunk-\d+-\d+(\.\w+)?\.bin"
MARKS = {"shards": "MDS", "chunks": "litdata"}
PACKERS = {"zstd": zstd, "gz": gzip.open, "bz2": bz2.open}
MOST = 2**32  # bytes of a shard, whose offsets are uint32
USUAL = ("image", "img", "images", "x", "jpg", "jpeg", "png", "data")


@dataclass
class Columns:
    """The columns in use: of the image, the label, the caption ("" for none) and the targets."""

    image: str
    label: str
    caption: str
    targets: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        return tuple(c for c in (self.image, self.label, self.caption, *self.targets) if c)


@dataclass
class Samples:
    """The samples of a shard as a group of items; `problem` says why none of them can be used."""

    shard: Shard
    columns: Columns
    layout: str
    split: int | None
    problem: str | None

    def __len__(self) -> int:
        return self.shard.samples

    def items(self, start: int, stop: int) -> Sequence[Item]:
        c = self.columns
        about = bool(c.label or c.caption or c.targets) and not self.problem
        return [
            Item(
                f"{self.shard.name}#{i}",
                ("sample", self.shard, i, c.image, self.layout),
                split=self.split,
                beside=(("sample", (self.shard, i, c.label, c.caption, c.targets)),) if about else (),
                problem=self.problem,
            )
            for i in range(start, stop)
        ]

    def facts(self) -> object:
        return [*self.shard[1:], self.columns.used, self.layout, self.split, self.problem]


def stream_listing(entries: list[Entry], skipped: list, work: Path, settings: Settings) -> Listing | None:
    """The samples of every index in a folder; None if it has no shards of these kinds.

    Args:
        entries: the files of the folder.
        skipped: what was left out before, as (name, reason).
        work: folder for shards that have to be decompressed.
    Raises:
        ImportError: pyarrow, which decompresses zstd, is not installed.
        ValueError: the index is damaged, names a file outside of its folder, or has no column that is asked for.
    """
    kinds, named, found, problems, files = set(), set(), [], [], {e.name: e for e in entries}
    shaped = [e.name for e in entries if re.fullmatch(SHARDS, e.name.rpartition("/")[2])]
    indices = [e for e in entries if e.name.rpartition("/")[2] == INDEX and not re.search(r"(^|/)\.", e.name)]
    for entry in sorted(indices, key=lambda e: e.name.count("/")):
        index = _index(entry, bool(shaped))
        mark = next((m for m in MARKS if isinstance(index, dict) and isinstance(index.get(m), list)), None)
        if mark is None:
            continue
        kinds.add(MARKS[mark])
        named.add(entry.name)
        try:
            of_index = list((_mds if mark == "shards" else _litdata)(entry.name, index, files, work))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__} "
            raise ValueError(f"{entry.name}: cannot be read as an index of {MARKS[mark]}: {kind}{error}") from error
        for shard, problem in of_index:
            if shard.name not in named:
                named.add(shard.name)
                found.append(shard)
                problems.append(problem)
    if not kinds and shaped:
        raise ValueError(f"{settings.source}: shards without their {INDEX}, e.g. {shaped[0]}; copy it beside them")
    if not kinds:
        return None
    packs = {f"{shard.name}.{end}" for shard in found for end in PACKERS}
    rest = [(e.name, f"not named in {INDEX}") for e in entries if e.name not in named | packs]
    if not any(shard.samples for shard in found):
        raise ValueError(f"{settings.source}: its {INDEX} names no samples")
    columns, left = _columns(found, settings)
    layout = _layout(found, problems, columns, settings)
    groups = []
    for shard, problem in zip(found, problems, strict=True):
        if missing := [c for c in columns.used if not shard.encoding(c)]:
            problem = f"{shard.name} has no column {missing[0]!r}, the others have"
        groups.append(Samples(shard, columns, layout, split_of(shard.name), problem))
    return Listing(groups, [*skipped, *rest], (), columns.targets, left, " and ".join(sorted(kinds)))


def _index(entry: Entry, shaped: bool) -> object:
    """The contents of an index.json; None if it cannot be read and belongs to no shards."""
    try:
        return json.loads(read(entry.place))
    except (Refused, ValueError, RecursionError) as error:
        if shaped:
            raise ValueError(f"{entry.name}: a damaged index: {error}; copy it again") from error
        return None


def _mds(name: str, index: dict, files: dict[str, Entry], work: Path) -> Iterator[tuple[Shard, str | None]]:
    """The shards of MosaicML's index, each with what is wrong with it.

    Raises:
        ValueError: another version or format.
    """
    for part in index["shards"]:
        if (part["version"], part["format"]) != (2, "mds"):
            raise ValueError(f"wanted shards of format mds and version 2, got {part['format']}")
        raw, zipped = part["raw_data"], part.get("zip_data")
        columns = zip(part["column_names"], part["column_encodings"], part["column_sizes"], strict=True)
        known = [(a, d) for a, d in (raw.get("hashes") or {}).items() if a in hashlib.algorithms_guaranteed]
        packer = (part.get("compression") or "").partition(":")[0]
        shard = Shard(
            "", _beside(name, raw["basename"]), int(part["samples"]), int(raw["bytes"]),
            tuple((str(n), str(e), int(size or 0)) for n, e, size in columns),
            tuple((a, str(d)) for a, d in known if not a.startswith("shake")),
        )  # fmt: skip
        yield _placed(shard, _beside(name, zipped["basename"]) if zipped else "", packer, files, work)


def _litdata(name: str, index: dict, files: dict[str, Entry], work: Path) -> Iterator[tuple[Shard, str | None]]:
    """The chunks of litdata's index, each with what is wrong with it.

    Raises:
        ValueError: encrypted, compressed by sample or batch, or written for another loader.
    """
    config = index["config"]
    loader, packer = config.get("item_loader") or "PyTreeLoader", (config.get("compression") or "").partition(":")[0]
    if config.get("encryption") or loader != "PyTreeLoader":
        raise ValueError(f"encrypted, or written for {loader}; only chunks of the PyTreeLoader are read")
    if packer and config.get("compression_level", "chunk") in ("batch", "sample"):
        raise ValueError("compressed inside its chunks; write it with compression_level='chunk', or without")
    names = list(_leaves(json.loads(config["data_spec"])[1]))
    columns = tuple((n, str(e), 0) for n, e in zip(names, config["data_format"], strict=True))
    for part in index["chunks"]:
        file = _beside(name, part["filename"])
        shard = Shard("", file, int(part["chunk_size"]), -1, columns)
        yield _placed(shard, file if packer else "", packer, files, work)


def _leaves(spec: dict, prefix: str = "") -> Iterator[str]:
    """The names of the values of a sample: keys, or numbers in a tuple; joined by dots where they are nested."""
    children = spec["children_spec"]
    if not children:
        yield prefix or "0"
        return
    keys = json.loads(spec["context"] or "null")
    for k, child in enumerate(children):
        key = str(keys[k]) if isinstance(keys, list) and len(keys) == len(children) else str(k)
        yield from _leaves(child, f"{prefix}.{key}" if prefix else key)


def _beside(index: str, name: str) -> str:
    """The name within the source of a file that an index names.

    Raises:
        ValueError: it lies outside of the folder of the index.
    """
    parts = str(name).replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise ValueError(f"names {name!r}, which lies outside of its folder")
    folder = index.rpartition("/")[0]
    return "/".join([*([folder] if folder else []), *(p for p in parts if p != ".")])


def _placed(shard: Shard, zipped: str, packer: str, files: dict[str, Entry], work: Path) -> tuple[Shard, str | None]:
    """A shard with the path of its file, decompressed where needed, and what is wrong with it.

    Raises:
        ImportError: pyarrow is not installed and needed.
        ValueError: impossible numbers, or a compression that is not read.
    """
    most = MOST if shard.bytes < 0 else min(MOST, shard.bytes)
    if shard.samples < 0 or 4 * (shard.samples + 2) > most:
        raise ValueError(f"{shard.name} has {shard.samples} samples in at most {most} bytes")
    packed_alone = bool(zipped) and (shard.name not in files or zipped == shard.name)
    entry = files.get(zipped if packed_alone else shard.name)
    if entry is None or entry.problem:
        return shard, entry.problem if entry else f"{zipped or shard.name} is missing, its index names it"
    path, size = Path(entry.place[1]), entry.bytes
    if packed_alone:
        if packer not in PACKERS:
            raise ValueError(f"compressed with {packer}; wanted {', '.join(PACKERS)} or none")
        try:
            path = unpacked(path, f"{shard.name}.mds", work, lambda: PACKERS[packer](path))
        except ValueError as error:
            return shard, f"{entry.name} cannot be unpacked: {error.__cause__}"
        size = path.stat().st_size
    if size != shard.bytes and shard.bytes >= 0:
        return shard, f"{shard.name} has {size:,} bytes, its index says {shard.bytes:,}; copy it again"
    return shard._replace(path=str(path), bytes=size), None


def _columns(found: list[Shard], settings: Settings) -> tuple[Columns, tuple[str, ...]]:
    """The columns in use, and number columns that are not.

    Raises:
        ValueError: there is no column of images, or none of a name that is asked for.
    """
    kinds = {name: encoding.partition(":")[0] for shard in found[::-1] for name, encoding, _ in shard.columns}
    able = [c for c, kind in kinds.items() if kind in samples.PICTURES]
    usual = next((c for c in USUAL if c in able), able[0] if len(able) == 1 else "")
    image = settings.key or usual
    if image not in able:
        said = ", ".join(f"{c} {kind}" for c, kind in kinds.items()) or "none"
        which = f" named {image}" if image else ""
        raise ValueError(f"{settings.source}: wanted one column of images{which}; choose one with --key: {said}")
    labels = [c for c, kind in kinds.items() if kind in samples.LABELS and c != image]
    words = [c for c, kind in kinds.items() if kind in samples.WORDS and c != image]
    numbers = [c for c, kind in kinds.items() if kind in samples.NUMBERS]
    label = chosen("label", settings.label, labels, (*LABELS, "y"), ("folders",))
    caption = chosen("caption", settings.caption, words, (*TEXTS, "txt"))
    if missing := [c for c in settings.targets if c not in numbers]:
        have = ", ".join(numbers) or "none"
        raise ValueError(f"--targets: no column {missing[0]!r} of numbers; the source has {have}")
    left = tuple(c for c in numbers if c not in (label, *settings.targets))
    return Columns(image, label, caption, settings.targets), left


def _layout(found: list[Shard], problems: list[str | None], columns: Columns, settings: Settings) -> str:
    """The layout of images that are stored as arrays, from the first that can be read; empty for encoded images.

    Raises:
        ValueError: the shape fits two layouts.
    """
    for shard, problem in zip(found, problems, strict=True):
        if problem or not shard.samples or shard.encoding(columns.image) not in samples.PIXELS:
            continue
        try:
            first = samples.image_of(shard, 0, columns.image)
        except Refused:
            continue
        return layout_of(Array(columns.image, (1, *first.shape), first.dtype, ()), shard.name, settings)
    return ""
