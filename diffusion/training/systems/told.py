"""An augmentation that the network is told of: whether it suits network and data, and the weights for its numbers."""

from typing import Any

import torch
from torch import nn

from diffusion.loss.augment import NonLeaking
from diffusion.nets.base import Net
from diffusion.training.systems.optimizers import layers


def prepare(net: nn.Module, augment: NonLeaking, paired: bool) -> None:
    """Set a network's weights for the numbers of an augmentation to 0, where its first layer is found.

    Raises:
        ValueError: the network has too few image_channels, or the data have paired images, which are not moved.
    """
    if paired:
        raise ValueError("Diffusion: augmentation would move the images and not their pairs; leave model.augment out")
    K = augment.numbers
    if getattr(net, "image_channels", 0) < K:
        raise ValueError(
            f"Diffusion: {type(augment).__name__} tells the network {K} numbers; make it with image_channels {K} more, "
            f"not {getattr(net, 'image_channels', 0)}"
        )
    first = layers(getattr(net, "inc", net))[:1]
    for layer in first if isinstance(net, Net) else ():
        each = layer.weight.shape[1] // net.in_channels  # of patches, several weights per channel
        with torch.no_grad():
            layer.weight[:, (net.in_channels - K) * each : net.in_channels * each] = 0


def refuse_changes(augment: NonLeaking, data: Any, bounded: bool) -> None:
    """Reject changes that do not suit a data set.

    Raises:
        ValueError: see `NonLeaking.refuse`.
    """
    labelled = bool(getattr(data, "num_classes", 0) or getattr(data, "context_dim", 0))
    changed_by = getattr(data, "changed_by", ()) if labelled else ()
    if labelled and getattr(data, "no_flip_classes", ()):
        changed_by = ("x_flip", *changed_by)
    augment.refuse(changed_by, getattr(data, "channels", 0), bounded, type(data).__name__)
