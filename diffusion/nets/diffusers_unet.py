"""An adapter for UNet2DModel of diffusers."""

from typing import Any

import torch
from torch import Tensor

from diffusion.nets.base import Net
from diffusion.nets.layers import check


class DiffusersUNet(Net):
    """diffusers' UNet2DModel behind the Net interface, for its architecture or its weights.

    Labels become its class labels; one extra label is the learned null. It receives the clock as its timestep, designed
    as an index 0 .. 999: choose a discrete schedule, or one whose clock is 1000 t.

    Args:
        channels: channels C of the images.
        options: arguments of UNet2DModel, such as {"block_out_channels": [32, 64], "layers_per_block": 1}; those that
            follow from the data (channels, classes) are set automatically.
        num_classes: classes of the labels; 0 for none.
    Raises:
        ModuleNotFoundError: diffusers is not installed.
        ValueError: an option is unknown to UNet2DModel, or follows from the data.
    """

    def __init__(self, channels: int = 3, options: dict[str, Any] | None = None, num_classes: int = 0) -> None:
        try:
            from diffusers import UNet2DModel
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("DiffusersUNet needs diffusers: pip install 'litdiffusion[diffusers]'") from error
        super().__init__(channels=channels, num_classes=num_classes)
        self.options = dict(options or {})
        given = {"in_channels": channels, "out_channels": channels}
        if num_classes:
            given["num_class_embeds"] = num_classes + 1
        if twice := sorted({*given, "num_class_embeds"} & set(self.options)):
            raise ValueError(f"DiffusersUNet: {', '.join(twice)} follow from the data; leave them out of options")
        try:
            self.body = UNet2DModel(**given, **self.options)
        except TypeError as error:
            raise ValueError(f"DiffusersUNet: options: {error}; expected arguments of UNet2DModel") from error

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W)."""
        check(self, x, 2 ** (len(self.body.config.block_out_channels) - 1), "give fewer block_out_channels")
        labels = None
        if self.num_classes:
            null = torch.full((x.shape[0],), self.num_classes, device=x.device)
            labels = null if y is None else y if keep is None else torch.where(keep, y, null)
        return self.body(x, clock, class_labels=labels).sample
