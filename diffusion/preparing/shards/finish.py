"""From finished blocks to the prepared folder: duplicates, split, labels, manifest, statistics, dataset.json."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from diffusion import __version__
from diffusion.preparing.items import Listing
from diffusion.preparing.settings import FORMAT, Settings
from diffusion.preparing.shards.copies import Copies, copies
from diffusion.preparing.shards.gather import Gathered, Stored, records
from diffusion.support.files import atomic

UNLABELLED = "no class, and other images have one; --label none uses it"
NO_NUMBER = "no number in every column of --targets"


@dataclass
class Chosen:
    """Which of the N kept images are in use, and where.

    Args:
        used: (N,) bool.
        split: (N,) uint8, 0 train, 1 test.
        copies: the duplicates.
        why: (N,) uint8: 0, or the reason why an image is not in use, see `REASONS`.
        crossing: copies in the test split of images in the train split.
    """

    used: np.ndarray
    split: np.ndarray
    copies: Copies
    why: np.ndarray
    crossing: int


def choose(found: Gathered, stored: Stored, settings: Settings) -> Chosen:
    """Decide which images are used, and in which split.

    Raises:
        ValueError: none or only one is left.
    """
    n = len(found)
    why = np.zeros(n, np.uint8)
    if found.targets.shape[1]:
        why[~np.isfinite(found.targets).all(1)] = 2
    if found.classes:
        why[found.label < 0] = 1
    twins = copies(found.marks.digest, found.marks.look, found.marks.small, stored, spread(found))
    other = twins.first != np.arange(n)
    if settings.duplicates != "keep":
        left_out = (twins.exact if settings.duplicates == "exact" else other) & (why == 0)
        why[left_out] = 3
    used = why == 0
    if used.sum() < 2:
        raise ValueError(
            f"{settings.source}: {used.sum()} images are left of {found.items}; a data set needs at least 2"
        )
    own = (found.split >= 0).all() and len(set(found.split[used].tolist())) == 2
    split = found.split.astype(np.uint8) if own else by_hash(found.marks.digest[twins.group], used, settings.test)
    crossing = int(((split == 1) & other & (split[twins.group] == 0) & used).sum())
    return Chosen(used, split, twins, why, crossing)


def spread(found: Gathered) -> float:
    """The width of the range of values: of the type, or of floats as measured."""
    if found.form.range or not len(found):
        return found.form.range
    return float(found.marks.high.max() - found.marks.low.min())


def by_hash(digest: np.ndarray, used: np.ndarray, test: float) -> np.ndarray:
    """The split (N,) of images by their hashes (N, 32); neither part is left empty, unless `test` is 0."""
    numbers = np.ascontiguousarray(digest[:, :8]).view(">u8")[:, 0].astype(np.float64) / 2**64
    split = (numbers < test).astype(np.uint8)
    if test and not split[used].any():
        split[used & (numbers == numbers[used].min())] = 1
    if split[used].all():
        split[used & (numbers == numbers[used].max())] = 0
    return split


def statistics(found: Gathered, chosen: Chosen) -> dict[str, list[float]]:
    """Mean, standard deviation, lowest and highest value of each channel over the train split."""
    mine = chosen.used & (chosen.split == 0)
    pixels = found.form.height * found.form.width
    means, spreads = found.marks.mean[mine], found.marks.spread[mine]
    mean = [math.fsum(column) / len(means) for column in means.T]
    inner = [math.fsum(column) for column in spreads.T]
    outer = [pixels * math.fsum((column - m) ** 2) for column, m in zip(means.T, mean, strict=True)]
    std = [math.sqrt((a + b) / (pixels * len(means))) for a, b in zip(inner, outer, strict=True)]
    return {
        "mean": mean,
        "std": std,
        "low": found.marks.low[mine].min(0).tolist(),
        "high": found.marks.high[mine].max(0).tolist(),
    }


def write(found: Gathered, chosen: Chosen, listing: Listing, blocks: Sequence[int], settings: Settings) -> dict:
    """Write every file of the prepared folder except dataset.json, whose facts are returned."""
    out, used = settings.out, chosen.used
    _array(out / "rows.npy", np.flatnonzero(used).astype(np.int64))
    _array(out / "split.npy", chosen.split[used])
    if found.classes:
        _array(out / "labels.npy", found.label[used])
    if listing.targets:
        _array(out / "targets.npy", found.targets[used])
    _manifest(found, chosen, listing, blocks, settings)
    n_test = int(chosen.split[used].sum())
    return {
        "format": FORMAT,
        "name": name_of(settings),
        "shape": list(found.form.shape),
        "dtype": found.form.dtype,
        "classes": list(found.classes),
        "clusters": settings.clusters,
        "targets": list(listing.targets),
        "captions": found.captions > 0,
        "images": {"train": int(used.sum()) - n_test, "test": n_test},
        "shards": found.shards,
        "statistics": statistics(found, chosen),
        "settings": settings.words,
        "source": listing.fingerprint,
        "software": {"litdiffusion": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
    }


def name_of(settings: Settings) -> str:
    """The name of the data set: --name, or that of the folder."""
    return settings.name or settings.out.resolve().name


def _manifest(found: Gathered, chosen: Chosen, listing: Listing, blocks: Sequence[int], settings: Settings) -> None:
    """manifest.jsonl, and captions.jsonl if there are captions; a second pass over the records."""
    out = settings.out
    wanted = {int(i) for i in chosen.copies.first[chosen.copies.first != np.arange(len(found))]}
    names, row = {}, 0
    with atomic(out / "manifest.jsonl") as temporary, atomic(out / ".work" / "captions.jsonl") as texts:
        with open(temporary, "w") as manifest, open(texts, "w") as captions:
            for line in records(out, blocks):
                if line["decision"] == "kept":
                    line = _decided(line, row, chosen, names)
                    if row in wanted:
                        names[row] = line["file"]
                    if chosen.used[row]:
                        line |= {"cluster": int(found.label[row])} if settings.clusters else {}
                        captions.write(json.dumps(line.get("caption")) + "\n")
                    row += 1
                manifest.write(json.dumps(line) + "\n")
            for file, reason in listing.skipped:
                manifest.write(json.dumps({"file": file, "decision": "skipped", "reason": reason}) + "\n")
    if found.captions:
        (out / ".work" / "captions.jsonl").replace(out / "captions.jsonl")


def _decided(line: dict, row: int, chosen: Chosen, names: dict[int, str]) -> dict:
    """The record of a stored image with the final decision."""
    first = int(chosen.copies.first[row])
    line["row"] = row
    if first != row:
        kind = "exact" if chosen.copies.exact[row] else "near"
        line |= {"of": names[first], "likeness": kind}
    why = int(chosen.why[row])
    if why == 3:
        line |= {
            "decision": "duplicate",
            "reason": "the same picture" if kind == "exact" else "nearly the same picture",
        }
    elif why:
        line |= {"decision": "refused", "reason": {1: UNLABELLED, 2: NO_NUMBER}[why]}
    else:
        line["split"] = int(chosen.split[row])
    return line


def _array(path: Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)
