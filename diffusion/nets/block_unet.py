"""BlockUNet: a U-Net with a configurable list of blocks at each level."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, told
from diffusion.nets.layers import Down, PixelAttention, ResBlock, Up, attention, check, group_norm, heads_of, zero

Kind = Literal["res", "conv", "clsAtn", "atn", "chnAtn"]


class ConvBlock(nn.Module):
    """A ConvNeXt block: depthwise 7x7 convolution, norm, pixelwise two-layer perceptron, layer scale.

    Source: Liu et al. 2022, arXiv:2201.03545, fig. 4. The norm's scale and shift by the features are ours.
    """

    def __init__(self, channels: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.tell = zero(nn.Linear(width, 2 * channels))
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        a, b = self.tell(features)[:, None, None].chunk(2, dim=-1)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1)) * (1 + a) + b  # (B, H, W, C)
        return x + (self.scale * self.mlp(h)).permute(0, 3, 1, 2)


class ClassAttention(nn.Module):
    """x + cross-attention of every pixel to tokens derived from the condition; initially the identity.

    Keys and values come from the condition alone. Several tokens let the result differ between pixels: a softmax over
    a single key is 1, whatever the query.
    """

    def __init__(self, channels: int, c_dim: int, head_width: int, tokens: int = 4) -> None:
        super().__init__()
        self.heads, self.tokens = heads_of(channels, head_width), tokens
        self.norm, self.q = group_norm(channels), nn.Linear(channels, channels)
        self.kv = nn.Linear(c_dim, tokens * 2 * channels)
        self.proj = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).view(B, H * W, self.heads, -1).transpose(1, 2)
        k, v = self.kv(condition).view(B, self.tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = attention(q, k, v)  # (B, heads, HW, C / heads)
        return x + self.proj(a.transpose(1, 2).reshape(B, H * W, C)).transpose(1, 2).reshape(B, C, H, W)


class ChannelAttention(nn.Module):
    """Efficient channel attention: each channel times the sigmoid of a convolution over channel means.

        x sigmoid(conv1d_k(mean over pixels)),    k = |log2(C) / 2 + 1 / 2| rounded to odd

    Source: Wang et al. 2020, arXiv:1910.03151, sec. 3.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = int(abs(math.log2(channels) + 1) / 2) | 1
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class BlockUNet(Net):
    """A U-Net with the same list of blocks at every level, on the way down, in the middle and on the way up.

    Level l works at size H / 2^l with width multiplier^l channels. Blocks preserve size and channels:

        res     residual block; clock and condition scale and shift its norm
        conv    ConvNeXt block, conditioned likewise
        clsAtn  class attention: every pixel attends to tokens of the condition
        atn     multi-head self-attention among patches, of side `patch` at full size, halved at each level
        chnAtn  efficient channel attention

    Args:
        channels: channels C of the images.
        blocks: the blocks of a level, in order; at least one is res or conv, which receive the clock.
        width: channels at full size, a multiple of 4.
        multiplier: factor by which the channels grow per level.
        layers: number of times the size is halved, >= 1.
        t_dim: features of the clock, a multiple of 4.
        c_dim: features of the condition.
        patch: side of the patches of `atn` at full size, a power of 2; 1 attends among pixels at every level.
        head_width: channels per attention head; 32 to 64 are fast.
        dropout: probability, in [0, 1), inside res and conv.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: blocks has neither res nor conv, clsAtn has no condition, or image sides are not divisible by
            2^layers or patch.
    """

    def __init__(
        self,
        channels: int = 1,
        blocks: Sequence[Kind] = ("res", "res", "conv", "atn", "chnAtn"),
        width: int = 64,
        multiplier: int = 2,
        layers: int = 2,
        t_dim: int = 256,
        c_dim: int = 256,
        patch: int = 2,
        head_width: int = 32,
        dropout: float = 0.0,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        self.blocks, self.width, self.multiplier = tuple(blocks), width, multiplier
        self.layers, self.t_dim, self.c_dim, self.patch = layers, t_dim, c_dim, patch
        self.head_width, self.dropout = head_width, dropout
        self.refuse()
        self.clock = ClockEmbedding(t_dim, t_dim)
        self.second = SecondClock.of(self, t_dim, t_dim)
        self.condition = ConditionEmbedding.of(self, c_dim)
        w = [width * multiplier**level for level in range(layers + 1)]
        self.inc = nn.Conv2d(self.in_channels, width, 3, padding=1)
        self.downs = nn.ModuleList(self.level(level, w[level]) for level in range(layers))
        self.shrink = nn.ModuleList(Down(w[level], w[level + 1]) for level in range(layers))
        self.middle = self.level(layers, w[-1])
        self.grow = nn.ModuleList(Up(w[level + 1], w[level]) for level in range(layers))
        self.joins = nn.ModuleList(nn.Conv2d(2 * w[level], w[level], 1) for level in range(layers))
        self.ups = nn.ModuleList(self.level(level, w[level]) for level in range(layers))
        self.norm = group_norm(width)
        self.outc = zero(nn.Conv2d(width, self.out_channels, 3, padding=1))

    def refuse(self) -> None:
        """Raise ValueError for inconsistent arguments."""
        if unknown := set(self.blocks) - set(Kind.__args__):
            known = ", ".join(Kind.__args__)
            raise ValueError(f"BlockUNet: blocks must be among {known}; got {', '.join(sorted(unknown))}")
        if not {"res", "conv"} & set(self.blocks):
            raise ValueError(f"BlockUNet: blocks must include res or conv, which receive the clock; got {self.blocks}")
        if "clsAtn" in self.blocks and not (self.num_classes or self.context_dim):
            raise ValueError("BlockUNet: clsAtn attends to a condition; give num_classes or leave clsAtn out of blocks")
        if self.layers < 1 or self.multiplier < 1 or self.patch < 1 or self.patch & (self.patch - 1):
            raise ValueError(
                "BlockUNet: expected layers and multiplier >= 1 and patch a power of 2; "
                f"got {self.layers}, {self.multiplier} and {self.patch}"
            )

    def level(self, level: int, c: int) -> nn.ModuleList:
        """The blocks of a level with c channels."""
        told = self.t_dim + (self.c_dim if self.condition is not None else 0)
        make = {
            "res": lambda: ResBlock(c, c, told, self.dropout),
            "conv": lambda: ConvBlock(c, told, self.dropout),
            "clsAtn": lambda: ClassAttention(c, self.c_dim, self.head_width),
            "atn": lambda: PixelAttention(c, self.head_width, max(1, self.patch >> level)),
            "chnAtn": lambda: ChannelAttention(c),
        }
        return nn.ModuleList(make[kind]() for kind in self.blocks)

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, max(2**self.layers, self.patch), f"give fewer than {self.layers} layers or a smaller patch")
        heard, condition = [told(self.clock, self.second, clock, to)], None
        if self.condition is not None:
            heard.append(condition := self.condition(y, keep, x.shape[0]))
        features = F.silu(torch.cat(heard, dim=1))

        def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
            for block in blocks:
                if isinstance(block, (ResBlock, ConvBlock)):
                    x = block(x, features)
                else:
                    x = block(x, condition) if isinstance(block, ClassAttention) else block(x)
            return x

        x, skips = self.inc(x), []
        for blocks, shrink in zip(self.downs, self.shrink, strict=True):
            skips.append(x := run(blocks, x))
            x = shrink(x)
        x = run(self.middle, x)
        for level in reversed(range(self.layers)):
            x = self.joins[level](torch.cat([self.grow[level](x), skips[level]], dim=1))
            x = run(self.ups[level], x)
        return self.outc(F.silu(self.norm(x)))
