"""Clusters of the images as their classes, for models of images without labels."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from diffusion.preparing.settings import BLOCK
from diffusion.preparing.shards.finish import Chosen, statistics
from diffusion.preparing.shards.gather import Gathered, Stored
from diffusion.support.console import progress

if TYPE_CHECKING:
    from torch import Tensor  # preparing without clusters imports no torch

MOST = 2**16  # training images that clusters are found from, spread evenly over all


def unlabelled(found: Gathered) -> Gathered:
    """The same images without classes."""
    return replace(found, classes=(), label=np.full(len(found), -1, np.int64))


def clustered(found: Gathered, chosen: Chosen, stored: Stored, k: int) -> Gathered:
    """The same images with k clusters of the training images as classes; each image in use is of the nearest.

    Images are compared as x_0, see `Scaling`, and reduced to at most 16 pixels along each side.

    Raises:
        ValueError: fewer than k training images are different.
    """
    import torch

    from diffusion.data.clusters import kmeans, nearest

    train, used = np.flatnonzero(chosen.used & (chosen.split == 0)), np.flatnonzero(chosen.used)
    some = train[np.arange(min(MOST, len(train))) * len(train) // min(MOST, len(train))]
    label = np.full(len(found), -1, np.int64)
    with progress(len(some) + len(used), what="clusters", unit="img") as bar:
        images = [x for _, x in read(found, chosen, stored, some, bar.update)]
        centres = kmeans(torch.cat(images), k)
        for numbers, x in read(found, chosen, stored, used, bar.update):
            label[numbers] = nearest(x, centres).numpy()
    return replace(found, classes=tuple(f"cluster {n}" for n in range(k)), label=label)


def read(
    found: Gathered, chosen: Chosen, stored: Stored, numbers: np.ndarray, tell
) -> Iterator[tuple[np.ndarray, "Tensor"]]:
    """Images of some numbers in parts: their numbers (B,) and x_0, reduced."""
    import torch

    from diffusion.data.clusters import reduced
    from diffusion.support.scaling import Scaling

    scaling = Scaling.measured(found.form.dtype, **statistics(found, chosen))
    for first in range(0, len(numbers), BLOCK):
        part = numbers[first : first + BLOCK]
        raw = np.stack([stored(int(i)) for i in part])
        yield part, reduced(scaling.encode(torch.from_numpy(raw)))
        tell(len(part))
