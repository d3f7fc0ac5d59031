"""A small prepared folder, written as its format is described, for tests of what reads it."""

import hashlib
import json
from pathlib import Path

import numpy as np


def write(
    folder, images, test=0.25, classes=(), labels=None, targets=None, names=(), block=7, gaps=True, empty=True,
    captions=None,
):  # fmt: skip
    """Write images (N, C, H, W) as shards of unequal sizes; every fourth or so is of the test split.

    Args:
        gaps: some rows of the shards are in no split, as those of duplicates that were left out.
        empty: every third shard holds no image.
    """
    folder = Path(folder)
    (folder / "shards").mkdir(parents=True)
    n = len(images)
    rows = np.arange(n) * 2 if gaps else np.arange(n)
    stored = np.zeros((rows[-1] + 1, *images.shape[1:]), images.dtype)
    stored[rows] = images
    shards, at = [], 0
    sizes = [block, 0, block + 3] if empty else [block]
    while at < len(stored):
        size = sizes[len(shards) % len(sizes)]
        part, file = stored[at : at + size], folder / "shards" / f"{len(shards):06d}.npy"
        np.save(file, part)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": f"shards/{file.name}", "images": len(part), "sha256": digest})
        at += len(part)
    split = (np.random.RandomState(1).permutation(n) < max(1, round(test * n))).astype(np.uint8)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "split.npy", split)
    if labels is not None:
        np.save(folder / "labels.npy", np.asarray(labels, np.int64))
    if targets is not None:
        np.save(folder / "targets.npy", np.asarray(targets, np.float32))
    if captions is not None:
        (folder / "captions.jsonl").write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    train = images[split == 0].astype(np.float64)
    kept = {"mean": train.mean((0, 2, 3)), "std": train.std((0, 2, 3))}
    kept |= {"low": train.min((0, 2, 3)), "high": train.max((0, 2, 3))}
    facts = {
        "format": 1, "name": folder.name, "shape": list(images.shape[1:]), "dtype": str(images.dtype),
        "classes": list(classes), "targets": list(names), "captions": captions is not None,
        "images": {"train": int((split == 0).sum()), "test": int((split == 1).sum())}, "shards": shards,
        "statistics": {k: v.tolist() for k, v in kept.items()}, "settings": {}, "software": {},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))
    return split
