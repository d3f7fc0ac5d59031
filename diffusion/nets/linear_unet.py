"""LinearUNet: a U-Net with linear attention at every size and full attention at the smallest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, Sinusoids, told
from diffusion.nets.layers import attention, check

MEMORY = 4  # learned keys and values of each attention layer


class ChannelNorm(nn.Module):
    """x scaled to root mean square 1 over the channels of each pixel, times a factor per channel.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (len(self.factor) ** 0.5 * self.factor)[:, None, None]


class Block(nn.Module):
    """shortcut(x) + silu(norm(conv(silu(norm(conv(x)) (1 + a) + b)))), (a, b) = Linear(features)."""

    def __init__(self, c_in: int, c_out: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c_in, c_out, 3, padding=1), ChannelNorm(c_out)
        self.tell, self.dropout = nn.Linear(width, 2 * c_out), nn.Dropout(dropout)
        self.conv2, self.norm2 = nn.Conv2d(c_out, c_out, 3, padding=1), ChannelNorm(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        a, b = self.tell(features)[:, :, None, None].chunk(2, dim=1)
        h = self.dropout(F.silu(self.norm1(self.conv1(x)) * (1 + a) + b))
        return self.shortcut(x) + F.silu(self.norm2(self.conv2(h)))


class Attention(nn.Module):
    """x + attention of every pixel to all pixels and to learned keys and values.

    Linear attention costs a number of operations linear in the number of pixels:

        full:    softmax(q k^T / sqrt(d)) v
        linear:  softmax_d(q) (softmax_n(k)^T v) / sqrt(d)

    Source: linear: Shen et al. 2018, arXiv:1812.01243, sec. 3.2; learned keys: Sukhbaatar et al. 2019,
    arXiv:1907.01470, sec. 3.
    """

    def __init__(self, channels: int, heads: int, head_width: int, full: bool) -> None:
        super().__init__()
        self.heads, self.full, width = heads, full, heads * head_width
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.memory = nn.Parameter(torch.randn(2, heads, MEMORY, head_width))
        self.proj = nn.Conv2d(width, channels, 1)
        self.out = nn.Identity() if full else ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, -1, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (B, heads, HW, d)
        more_k, more_v = self.memory[:, None].expand(2, B, *self.memory.shape[1:])
        k, v = torch.cat([more_k, k], dim=2), torch.cat([more_v, v], dim=2)
        if self.full:
            a = attention(q, k, v)
        else:
            a = q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v) / q.shape[-1] ** 0.5
        return x + self.out(self.proj(a.transpose(-1, -2).reshape(B, -1, H, W)))


class Level(nn.Module):
    """Two blocks, attention after the second, and a change of size: the parts of a level, without a forward pass."""

    def __init__(self, blocks: Sequence[Block], attention: Attention, resample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention, self.resample = nn.ModuleList(blocks), attention, resample


class LinearUNet(Net):
    """The U-Net of the package denoising-diffusion-pytorch: cheap attention at every size.

    Level l works at size H / 2^l; it enters with the width of the level before and leaves with mults[l] times `width`.
    Its two blocks each leave a skip connection, which the two blocks on the way up concatenate. Attention follows the
    second block: full attention at the levels in `attention` and in the middle, linear attention elsewhere.

    Args:
        channels: channels C of the images.
        width: channels at full size, a multiple of 4.
        mults: channels of each level in units of width; each further level halves the size.
        attention: levels with full attention; None is the last one.
        heads: attention heads at every level.
        head_width: channels per attention head.
        dropout: probability, in [0, 1), inside the blocks.
        sinusoids: features of the clock: "any" for any schedule, "ddpm" the published ones of an index 0 .. 999.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: mults < 1, levels that do not exist, or image sides not divisible by 2^(levels - 1).
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        mults: Sequence[int] = (1, 2, 4, 8),
        attention: Sequence[int] | None = None,
        heads: int = 4,
        head_width: int = 32,
        dropout: float = 0.0,
        sinusoids: Sinusoids = "any",
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        last = len(mults) - 1
        full = [last] if attention is None else list(attention)
        if last < 0 or min(mults) < 1 or not set(full) <= set(range(last + 1)):
            raise ValueError(
                f"LinearUNet: expected mults >= 1 and attention at levels 0 .. {last}; got {mults}, {full}"
            )
        self.width, self.mults, self.attention = width, tuple(mults), None if attention is None else tuple(attention)
        self.heads, self.head_width, self.dropout, self.sinusoids = heads, head_width, dropout, sinusoids

        def level(c: int, skip: int, resample: nn.Module, number: int) -> Level:
            blocks = [Block(c + skip, c, 4 * width, dropout) for _ in range(2)]
            return Level(blocks, Attention(c, heads, head_width, number in full), resample)

        def conv(c_in: int, c_out: int) -> nn.Conv2d:
            return nn.Conv2d(c_in, c_out, 3, padding=1)

        c = [width, *(mult * width for mult in mults)]  # channels that enter each level, and those that leave the last
        self.clock = ClockEmbedding(width, 4 * width, sinusoids, act=nn.GELU)
        self.second = SecondClock.of(self, width, 4 * width, sinusoids)
        self.condition = ConditionEmbedding.of(self, 4 * width)
        self.inc = nn.Conv2d(self.in_channels, width, 7, padding=3)
        self.downs = nn.ModuleList(
            level(c[k], 0, conv(c[k], c[k + 1]) if k == last else
                  nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * c[k], c[k + 1], 1)), k)
            for k in range(last + 1)
        )  # fmt: skip
        self.middle = nn.ModuleList(Block(c[-1], c[-1], 4 * width, dropout) for _ in range(2))
        self.middle_attention = Attention(c[-1], heads, head_width, True)
        self.ups = nn.ModuleList(
            level(c[k + 1], c[k], nn.Sequential(nn.Identity() if k == 0 else nn.Upsample(scale_factor=2),
                                                conv(c[k + 1], c[k])), k)
            for k in reversed(range(last + 1))
        )  # fmt: skip
        self.last = Block(2 * width, width, 4 * width, dropout)
        self.outc = nn.Conv2d(width, self.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, 2 ** (len(self.mults) - 1), f"give fewer than {len(self.mults)} mults")
        features = told(self.clock, self.second, clock, to)
        if self.condition is not None:
            features = features + self.condition(y, keep, len(x))
        features = F.silu(features)
        x = first = self.inc(x)
        skips = []
        for part in self.downs:
            skips.append(x := part.blocks[0](x, features))
            skips.append(x := part.attention(part.blocks[1](x, features)))
            x = part.resample(x)
        x = self.middle_attention(self.middle[0](x, features))
        x = self.middle[1](x, features)
        for part in self.ups:
            for block in part.blocks:
                x = block(torch.cat([x, skips.pop()], dim=1), features)
            x = part.resample(part.attention(x))
        return self.outc(self.last(torch.cat([x, first], dim=1), features))
