"""ContextUNet: the small U-Net of a short course; the context scales the features, the time shifts them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, told
from diffusion.nets.layers import check, group_norm


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with norm and GELU; with `residual`, (shortcut(x) + f(x)) / sqrt(2)."""

    def __init__(self, c_in: int, c_out: int, residual: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), group_norm(c_out), nn.GELU(),
            nn.Conv2d(c_out, c_out, 3, padding=1), group_norm(c_out), nn.GELU(),
        )  # fmt: skip
        self.shortcut: nn.Module | None = None
        if residual:  # created once: the course creates it anew in every `forward`, so it is never trained
            self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.shortcut is None else (self.shortcut(x) + self.body(x)) / 2**0.5


class Up(nn.Sequential):
    """Double the size with a transposed convolution, then convolve: (B, c_in, H, W) -> (B, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.ConvTranspose2d(c_in, c_out, 2, 2), ConvBlock(c_out, c_out), ConvBlock(c_out, c_out))


class Factor(nn.Module):
    """The condition as one factor per channel, initially near 1: embedding, GELU, Linear."""

    def __init__(self, num_classes: int, context_dim: int, width: int) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(num_classes, context_dim, width)
        self.map = nn.Linear(width, width)
        nn.init.ones_(self.map.bias)

    def forward(self, y: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        return self.map(F.gelu(self.embed(y, keep, batch)))[:, :, None, None]


class ContextUNet(Net):
    """Two levels down to pooled features, two up; each up stage maps x to c x + t, c from the condition, t the clock.

    The network of the short course "How Diffusion Models Work" (its 16x16 sprites: width 64, context_dim 5, pool 4),
    with these corrections: group norm, so that an image does not depend on its batch; any size divisible by 4 pool; a
    learned null embedding, because a context of zeros is a valid context; sinusoidal features of the clock instead of
    one number; a trained shortcut.

    Args:
        channels: channels C of the images.
        width: channels at full size, a multiple of 4; doubled at a quarter of the size.
        pool: side of the average pooling at a quarter of the size; 2 for 8x8 images.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: width is not divisible by 4, or image sides are not divisible by 4 pool.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        pool: int = 4,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        if pool < 1:
            raise ValueError(f"ContextUNet: pool must be at least 1, got {pool}")
        self.width, self.pool = width, pool
        w = width
        self.inc = ConvBlock(self.in_channels, w, residual=True)
        self.down1 = nn.Sequential(ConvBlock(w, w), ConvBlock(w, w), nn.MaxPool2d(2))
        self.down2 = nn.Sequential(ConvBlock(w, 2 * w), ConvBlock(2 * w, 2 * w), nn.MaxPool2d(2))
        self.clocks = nn.ModuleList(ClockEmbedding(w, c) for c in (2 * w, w))
        self.seconds = nn.ModuleList(SecondClock(w, c) for c in (2 * w, w) if self.second_clock)
        self.factors = nn.ModuleList(
            Factor(self.num_classes, self.context_dim, c) for c in (2 * w, w) if self.num_classes or self.context_dim
        )
        self.up0 = nn.Sequential(
            nn.AvgPool2d(pool), nn.GELU(), nn.ConvTranspose2d(2 * w, 2 * w, pool, pool), group_norm(2 * w), nn.ReLU()
        )
        self.up1, self.up2 = Up(4 * w, w), Up(2 * w, w)
        self.outc = nn.Sequential(
            nn.Conv2d(2 * w, w, 3, padding=1), group_norm(w), nn.ReLU(),
            nn.Conv2d(w, self.out_channels, 3, padding=1),
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, 4 * self.pool, "give a smaller pool")

        def tell(x: Tensor, stage: int) -> Tensor:
            if self.factors:
                x = self.factors[stage](y, keep, x.shape[0]) * x
            second = self.seconds[stage] if self.seconds else None
            return x + told(self.clocks[stage], second, clock, to)[:, :, None, None]

        full = self.inc(x)  # (B, w, H, W)
        half = self.down1(full)  # (B, w, H/2, W/2)
        quarter = self.down2(half)  # (B, 2w, H/4, W/4)
        x = self.up0(quarter)
        x = self.up1(torch.cat([tell(x, 0), quarter], dim=1))
        x = self.up2(torch.cat([tell(x, 1), half], dim=1))
        return self.outc(torch.cat([x, full], dim=1))
