"""An augmentation that the network is told of: whether it suits network and data, and the weights for its numbers."""

from typing import Any

import torch
from torch import nn

from diffusion.denoiser.saved import told_columns
from diffusion.loss.augment import NonLeaking
from diffusion.nets.base import Net
from diffusion.support.specs import build, spec


def prepare(net: nn.Module, augment: NonLeaking, paired: bool) -> None:
    """Set a network's weights for the numbers of an augmentation to 0.

    Raises:
        ValueError: the data have paired images, which are not moved; or the network has too few image_channels, is no
            `Net`, or has other weights without these inputs, so that they could not be cut off.
    """
    if paired:
        raise ValueError("Diffusion: augmentation would move the images and not their pairs; leave model.augment out")
    K = augment.numbers
    if getattr(net, "image_channels", 0) < K:
        raise ValueError(
            f"Diffusion: {type(augment).__name__} tells the network {K} numbers; make it with image_channels {K} more, "
            f"not {getattr(net, 'image_channels', 0)}"
        )
    if not isinstance(net, Net):
        raise ValueError(
            f"Diffusion: {type(augment).__name__} needs a network derived from nets.base.Net, got {type(net).__name__}"
        )
    fewer = spec(net)
    fewer["init_args"]["image_channels"] -= K
    with torch.device("meta"):
        cut = build(fewer)
    without = {name: p.shape for name, p in cut.named_parameters()}
    if without.keys() != dict(net.named_parameters()).keys():
        raise ValueError(
            f"Diffusion: {type(net).__name__} has other weights without the {K} numbers that {type(augment).__name__} "
            "tells; choose another width"
        )
    for name, p in net.named_parameters():
        if p.shape != without[name]:
            p.data[:, told_columns(p.shape, without[name], cut.in_channels, K)] = 0


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
