"""AttentionUNet, the reference network: a U-Net of double convolutions with self-attention at low resolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ConditionEmbedding, SecondClock, codes
from diffusion.nets.layers import attention, check


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with a GroupNorm of one group; with `residual`, gelu(x + f(x))."""

    def __init__(self, c_in: int, c_out: int, c_mid: int | None = None, residual: bool = False, dropout: float = 0.0):
        super().__init__()
        c_mid = c_mid or c_out
        self.residual = residual
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_mid, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_mid),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x)) if self.residual else self.body(x)


class Down(nn.Sequential):
    """Halve the size by max-pooling, then convolve: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int, dropout: float = 0.0):
        super().__init__(
            nn.MaxPool2d(2),
            DoubleConv(c_in, c_in, residual=True, dropout=dropout),
            DoubleConv(c_in, c_out, dropout=dropout),
        )


class Up(nn.Module):
    """Double the size, concatenate the skip connection, convolve; c_in counts the channels of both inputs."""

    def __init__(self, c_in: int, c_out: int, dropout: float = 0.0):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.body = nn.Sequential(
            DoubleConv(c_in, c_in, residual=True, dropout=dropout),
            DoubleConv(c_in, c_out, c_in // 2, dropout=dropout),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.body(torch.cat([skip, self.up(x)], dim=1))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels, then a two-layer perceptron, both pre-norm and residual."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        if channels % heads:
            raise ValueError(f"SelfAttention: {heads} heads do not divide {channels} channels")
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(self.norm(x)).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        a = attention(q, k, v)  # (B, heads, HW, C / heads)
        x = x + self.proj(a.transpose(1, 2).reshape(B, H * W, C))
        x = x + self.mlp(x)
        return x.transpose(1, 2).reshape(B, C, H, W)


class AttentionUNet(Net):
    """The self-attention U-Net this project started from; 12,919,041 parameters at the default widths.

    Level l works at size H / 2^l with widths[l] channels. Every stage but the first adds a sinusoidal encoding of
    the clock and, if there is a condition, a linear map of its embedding. Attention follows each stage at level
    `attention` or deeper.

    Args:
        channels: channels C of the images.
        widths: channels of each level, from full size down, each even; the depth is len(widths) - 1 >= 1.
        heads: attention heads; 32 to 64 channels per head are fast.
        attention: the shallowest level that has attention.
        dropout: probability, in [0, 1), inside the double convolutions.
        ones: append a channel of ones to the input. The first GroupNorm removes the image's overall brightness; a
            constant channel lets the network recover it. Matters most for small images of few grey levels.
        clock_shift: added to the clock; 1 where a network was trained with indices from 1.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: fewer than two widths, odd widths, or image sides not divisible by 2^depth.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 256),
        heads: int = 4,
        attention: int = 2,
        dropout: float = 0.0,
        ones: bool = False,
        clock_shift: float = 0.0,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        if len(widths) < 2 or any(w < 2 or w % 2 for w in widths):
            raise ValueError(f"AttentionUNet: widths must be at least two even numbers, got {list(widths)}")
        self.widths, self.heads, self.attention = tuple(widths), heads, attention
        self.dropout, self.ones, self.clock_shift = dropout, ones, clock_shift
        self.depth = depth = len(widths) - 1
        w = self.widths
        ups = [w[max(level - 1, 0)] for level in reversed(range(depth))]  # channels after each up stage
        self.inc = DoubleConv(self.in_channels + ones, w[0])
        self.downs = nn.ModuleList(Down(w[i], w[i + 1], dropout) for i in range(depth))
        self.ups = nn.ModuleList(
            Up((w[-1] if i == 0 else ups[i - 1]) + w[depth - 1 - i], c, dropout) for i, c in enumerate(ups)
        )
        self.outc = nn.Conv2d(w[0], self.out_channels, 1)
        levels = [*range(1, depth + 1), *reversed(range(depth))]
        stages = list(zip(levels, [*w[1:], *ups], strict=True))  # (level, channels) of each
        self.attentions = nn.ModuleList(
            SelfAttention(c, heads) if level >= attention else nn.Identity() for level, c in stages
        )
        self.stage_widths = [c for _, c in stages]
        self.condition = ConditionEmbedding.of(self, 4 * w[0])
        if self.condition is not None:
            self.maps = nn.ModuleList(nn.Linear(4 * w[0], c) for c in self.stage_widths)
        if self.second_clock:
            self.seconds = nn.ModuleList(SecondClock(4 * w[0], c) for c in self.stage_widths)

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, 2**self.depth, f"give fewer than {self.depth + 1} widths")
        features = None if self.condition is None else self.condition(y, keep, x.shape[0])
        clock_codes = codes(clock + self.clock_shift if self.clock_shift else clock, self.stage_widths)
        if self.second_clock:
            to = clock if to is None else to
            clock_codes = [code + second(to) for code, second in zip(clock_codes, self.seconds, strict=True)]
        x = self.inc(torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if self.ones else x)
        skips = [x]
        for stage, down in enumerate(self.downs):
            x = self.modulated(stage, down(x), clock_codes[stage], features)
            skips.append(x)
        skips.pop()
        for stage, up in enumerate(self.ups, self.depth):
            x = self.modulated(stage, up(x, skips.pop()), clock_codes[stage], features)
        return self.outc(x)

    def modulated(self, stage: int, x: Tensor, clock_code: Tensor, features: Tensor | None) -> Tensor:
        """A stage's output x with clock and condition added, followed by the stage's attention."""
        added = clock_code.to(x.dtype)
        if features is not None:
            added = added + self.maps[stage](features)
        return self.attentions[stage](x + added[:, :, None, None])
