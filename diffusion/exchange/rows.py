"""Tables of weights: the parameters of one of our networks and those of another program's, row by row."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


def same(value: Tensor) -> Tensor:
    """The value itself."""
    return value


class Row(NamedTuple):
    """One parameter of ours and those of theirs that it is made of.

    Attributes:
        ours: name in our network.
        theirs: names there, which ours has stacked along its first dimension.
        read: from the stacked values to ours, where they differ in order or shape.
        write: the inverse of `read`.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Tensor], Tensor] = same
    write: Callable[[Tensor], Tensor] = same


def pair(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """The rows of a layer's weight and bias."""
    return [Row(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in ("weight", "bias")[: 1 + bias]]


def read(net: nn.Module, table: Iterable[Row], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Our network's parameters, in float32, from another program's.

    Parameters without a row keep the values of `net`.

    Args:
        source: what the weights are called in messages.
    Raises:
        ValueError: weights are missing, left over, or of another shape.
    """
    own, left = dict(net.state_dict()), dict(state)
    for row in table:
        if missing := [name for name in row.theirs if name not in left]:
            raise ValueError(f"{source}: the weights {missing[0]} are missing, which this network has")
        parts = [left.pop(name) for name in row.theirs]
        value = row.read(parts[0] if len(parts) == 1 else torch.cat(parts)).float()
        wanted = tuple(own[row.ours].shape)
        if tuple(value.shape) != wanted:
            raise ValueError(f"{source}: {row.theirs[0]} has shape {tuple(value.shape)}, expected {wanted}")
        own[row.ours] = value.contiguous().clone()
    if left:
        raise ValueError(f"{source}: {len(left)} weights have no place in the network, {next(iter(left))} among them")
    return own


def write(table: Iterable[Row], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another program's parameters from ours: the inverse of `read`."""
    state = {}
    for row in table:
        parts = row.write(own[row.ours]).chunk(len(row.theirs))
        state |= {name: part.contiguous().clone() for name, part in zip(row.theirs, parts, strict=True)}
    return state
