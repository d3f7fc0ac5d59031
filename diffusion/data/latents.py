"""Latents of training images, encoded once and kept in memory, or in a file if there are many."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.store import InMemory, Shards, Store, blocks
from diffusion.support.console import progress
from diffusion.support.paths import cache_root

BUDGET = 2**31  # bytes of latents that are kept in memory


def encoded(images: Store, encode: Callable[[Tensor], Tensor], mark: str, budget: int = BUDGET) -> Store:
    """The latents of a store's images, in their order: in memory, or in a file of the cache above the budget.

    The file is found again by the codec and the images, and is complete whenever it exists.

    Args:
        images: N raw images.
        encode: from raw images (B, C, H, W) to latents (B, c, h, w).
        mark: identifies what `encode` does.
        budget: bytes.
    """
    first = encode(images.take(torch.arange(1)))
    shape = tuple(first.shape[1:])
    if len(images) * first[0].numel() * 4 <= budget:
        found = InMemory(filled(torch.empty(len(images), *shape), images, encode))
    else:
        found = Shards(kept(images, encode, shape, mark), np.arange(len(images)))
    found.arrange = images.arrange  # the order of training is that of the images
    return found


def filled(z: Tensor, images: Store, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor (N, c, h, w) with the latents of all images written to it."""
    with progress(len(images), what="encoding", unit="img") as bar:
        for part in blocks(images):
            z[part[0] : part[-1] + 1] = encode(images.take(part)).cpu()
            bar.update(len(part))
    return z


def kept(images: Store, encode: Callable[[Tensor], Tensor], shape: tuple[int, ...], mark: str) -> Path:
    """The folder of the cache with these latents in one shard, as `Shards` reads it; written on the first call."""
    key = hashlib.sha256(f"{mark} {shape} {fingerprint(images)}".encode()).hexdigest()[:16]
    folder = cache_root() / "latents" / key
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{key}.tmp-"))
    try:
        array = np.lib.format.open_memmap(temporary / "0.npy", "w+", np.float32, (len(images), *shape))
        filled(torch.from_numpy(array), images, encode)
        array.flush()
        shard = {"file": "0.npy", "images": len(images), "sha256": key}
        (temporary / "dataset.json").write_text(
            json.dumps({"shards": [shard], "shape": list(shape), "dtype": "float32"})
        )
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same latents
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def fingerprint(images: Store) -> str:
    """Identifies the images and their order: by the store's own fingerprint, or by their values."""
    if known := getattr(images, "fingerprint", None):
        return known
    found = hashlib.sha256(f"{images.shape} {images.dtype}".encode())
    for part in blocks(images):
        found.update(images.take(part).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
