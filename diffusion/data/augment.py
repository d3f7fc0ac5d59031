"""Augmentations of training images, each a function of the image and of uniform numbers drawn for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(ABC):
    """A random change of images; training draws its numbers from (seed, epoch, place in the epoch's order)."""

    numbers: ClassVar[int]  # uniform numbers per image
    needs_bounds: ClassVar[bool] = False  # whether it is defined for x_0 in [-1, 1] only

    @abstractmethod
    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """The changed images.

        Args:
            x: (B, C, H, W) float32, x_0.
            u: (B, numbers) float32 in [0, 1).
        """


class PadCrop(Augmentation):
    """Pad by reflection and crop at a random place: a shift by up to `pixels` in each direction.

    Source: He et al. 2016, arXiv:1512.03385, sec. 4.2 (there with zeros).

    Args:
        pixels: >= 1 and below the images' sides.
    """

    numbers = 2

    def __init__(self, pixels: int = 4) -> None:
        if pixels < 1:
            raise ValueError(f"PadCrop: wanted pixels >= 1, got {pixels}")
        self.pixels = pixels

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        B, _, H, W = x.shape
        if self.pixels >= min(H, W):
            raise ValueError(f"PadCrop: pixels {self.pixels} for images of {H}x{W}; wanted fewer than a side has")
        padded = F.pad(x, [self.pixels] * 4, mode="reflect")
        top, left = (u * (2 * self.pixels + 1)).long().unbind(1)  # (B,) in 0 .. 2 pixels
        rows = top[:, None] + torch.arange(H, device=x.device)
        columns = left[:, None] + torch.arange(W, device=x.device)
        images = torch.arange(B, device=x.device)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        return cropped.permute(0, 3, 1, 2).contiguous()


class Rotate(Augmentation):
    """Rotate about the centre by an angle that is uniform in [-degrees, degrees]; bilinear, with reflected borders.

    Args:
        degrees: in (0, 180].
    """

    numbers = 1

    def __init__(self, degrees: float = 10.0) -> None:
        if not 0 < degrees <= 180:
            raise ValueError(f"Rotate: wanted degrees in (0, 180], got {degrees}")
        self.degrees = degrees

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        angle = (2 * u[:, 0] - 1) * math.radians(self.degrees)
        cos, sin, aspect = angle.cos(), angle.sin(), x.shape[-1] / x.shape[-2]
        zero = torch.zeros_like(cos)  # affine_grid's axes are (width, height), each from -1 to 1
        turn = torch.stack([cos, -sin / aspect, zero, sin * aspect, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(turn, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


class Colour(Augmentation):
    """Change brightness, contrast and, of three channels, saturation, each by up to `strength`.

        x <- mean + c (x - mean) + b,  then  grey + s (x - grey);  b, c - 1, s - 1 uniform in [-strength, strength]

    `mean` is the image's, `grey` a pixel's mean over the channels. Values beyond [-1, 1] are clamped.

    Args:
        strength: in (0, 1).
    """

    numbers, needs_bounds = 3, True

    def __init__(self, strength: float = 0.1) -> None:
        if not 0 < strength < 1:
            raise ValueError(f"Colour: wanted strength in (0, 1), got {strength}")
        self.strength = strength

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        b, c, s = (((2 * u - 1) * self.strength).T[..., None, None, None]).unbind(0)  # (B, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (1 + c) * (x - mean) + b
        if x.shape[1] == 3:
            grey = x.mean(1, keepdim=True)
            x = grey + (1 + s) * (x - grey)
        return x.clamp(-1, 1)
