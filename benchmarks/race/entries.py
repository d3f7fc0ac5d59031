"""The entries of the race."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from benchmarks.race import more, peers
from benchmarks.race.images import batch


class Entry(NamedTuple):
    """An entry: another package's loop, or this project's where `kind` is None."""

    kind: Callable | None
    equal: bool = False  # this project's batch and about its size of network
    labels: bool = False  # trained with labels
    clusters: bool = False  # trained with clusters of the images as labels


ENTRIES = {
    "ours": Entry(None),
    "ours, labels": Entry(None, labels=True),
    "ours, clusters": Entry(None, clusters=True),
    "lucidrains": Entry(peers.Lucidrains),
    "lucidrains, equal": Entry(peers.Lucidrains, equal=True),
    "diffusers": Entry(peers.Diffusers),
    "diffusers, equal": Entry(peers.Diffusers, equal=True),
    "smalldiffusion": Entry(peers.SmallDiffusion),
    "smalldiffusion, equal": Entry(peers.SmallDiffusion, equal=True),
    "torchcfm": Entry(peers.TorchCFM),
    "torchcfm, equal": Entry(peers.TorchCFM, equal=True),  # only its batch is another: the rest is about equal already
    "azula": Entry(more.Azula, labels=True),
    "azula, equal": Entry(more.Azula, equal=True, labels=True),
    "origin": Entry(more.Original),
}


def entrant(name: str, data: str, images: Tensor, y: Tensor) -> peers.Entrant:
    """Another package's training loop on a data set, ready for its first step."""
    entry = ENTRIES[name]
    return entry.kind(images, y, batch(data) if entry.equal else None)
