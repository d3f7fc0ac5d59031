"""Shared building blocks of networks: norms, attention, residual blocks, and input validation."""

from math import gcd
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def check(net: nn.Module, x: Tensor, step: int = 1, remedy: str = "") -> None:
    """Validate the network's input x (B, C, H, W).

    Raises:
        ValueError: x has the wrong number of channels, or a height or width not divisible by `step`.
    """
    name, H, W = type(net).__name__, *x.shape[-2:]
    if x.shape[1] != (wanted := net.in_channels):
        raise ValueError(f"{name}: expected {wanted} channels, got images of {x.shape[1]}")
    if H % step or W % step:
        pad = [-(-n // step) * step for n in (H, W)]
        raise ValueError(f"{name}: {H}x{W} is not divisible by {step}; pad to {pad[0]}x{pad[1]} or {remedy}")


def heads_of(channels: int, head_width: int) -> int:
    """The number of heads of `head_width` channels each, at least 1.

    Raises:
        ValueError: head_width does not divide channels.
    """
    if head_width < 1 or channels > head_width and channels % head_width:
        raise ValueError(f"attention: head_width {head_width} does not divide {channels} channels")
    return max(1, channels // head_width)


class Norm(NamedTuple):
    """How the channels of a network are normalised.

    Attributes:
        groups: of each GroupNorm; 0 is at most 32 groups of at least 4 channels, by the rule of Karras et al. 2022,
            arXiv:2206.00364: a group of one channel would cancel any constant added to it.
        eps: added to the variance.
    """

    groups: int = 0
    eps: float = 1e-5


def group_norm(channels: int, norm: Norm = Norm()) -> nn.GroupNorm:
    """The GroupNorm of some channels.

    Raises:
        ValueError: the number of groups does not divide the channels.
    """
    groups = norm.groups or gcd(channels, min(32, max(1, channels // 4)))
    if channels % groups:
        raise ValueError(f"norm: {groups} groups do not divide {channels} channels")
    return nn.GroupNorm(groups, channels, norm.eps)


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters set to 0, so that a residual branch ending in it is initially 0."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


SHORT = {torch.float32: 32 * 32, torch.bfloat16: 256 * 256}  # weights N M up to which the formula is faster, see below


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with q of shape (..., N, d), k and v of (..., M, d).

    PyTorch's own attention takes longer than the formula in training on a CPU where there are few tokens, in bf16 5
    times as long (`python -m benchmarks.attention`).

    Args:
        q, k, v: queries, keys and values.
        mask: bool, broadcast to (..., N, M); True is attended to.
    """
    if q.device.type != "cpu" or not q.requires_grad or q.shape[-2] * k.shape[-2] > SHORT.get(q.dtype, 0):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


class MultiHead(nn.Module):
    """Multi-head self-attention over tokens (B, N, c_in) with `width` inner channels.

        softmax(q k^T / sqrt(width / heads)) v

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.
    """

    def __init__(self, c_in: int, heads: int, width: int | None = None) -> None:
        super().__init__()
        width = width or c_in
        if width % heads:
            raise ValueError(f"attention: {heads} heads do not divide {width} channels")
        self.heads = heads
        self.qkv = nn.Linear(c_in, 3 * width)
        self.proj = nn.Linear(width, c_in)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, N, width / heads)
        a = attention(q, k, v)
        return self.proj(a.transpose(1, 2).reshape(B, N, -1))


class PixelAttention(nn.Module):
    """x + self-attention among the pixels of x (B, C, H, W), or its p x p patches; initially the identity."""

    def __init__(
        self, channels: int, head_width: int = 64, patch: int = 1, heads: int = 0, norm: Norm = Norm()
    ) -> None:
        super().__init__()
        self.patch = patch
        self.norm = group_norm(channels, norm)
        self.attend = MultiHead(channels * patch**2, heads or heads_of(channels, head_width), channels)
        zero(self.attend.proj)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(self.norm(x), self.patch)  # (B, C p^2, H / p, W / p)
        tokens = self.attend(h.flatten(2).transpose(1, 2))
        return x + F.pixel_shuffle(tokens.transpose(1, 2).reshape(h.shape), self.patch)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), conditioned through the second norm; initially its shortcut.

        scale_shift:  norm(h) (1 + a) + b,    (a, b) = Linear(features)
        else:         norm(h + b),            b = Linear(features)

    With `resample` both branches are downsampled (2x2 mean) or upsampled (nearest) by 2.
    Source: Ho et al. 2020, arXiv:2006.11239, app. B; Dhariwal and Nichol 2021, arXiv:2105.05233, sec. 3.

    Args:
        c_in: input channels.
        c_out: output channels; the shortcut is a 1x1 convolution where they differ.
        width: number of conditioning features.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        width: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Literal["", "down", "up"] = "",
        norm: Norm = Norm(),
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1, self.conv1 = group_norm(c_in, norm), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.tell = nn.Linear(width, c_out * (1 + scale_shift))
        self.norm2, self.dropout = group_norm(c_out, norm), nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h, told = self.conv1(h), self.tell(features)[:, :, None, None]
        if self.scale_shift:
            a, b = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + a) + b
        else:
            h = self.norm2(h + told)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Down(nn.Conv2d):
    """Halve the size with a 3x3 convolution of stride 2.

    Args:
        pad_end: pad right and bottom only, as TensorFlow's "same" does for even sizes, instead of all four sides.
    """

    def __init__(self, c_in: int, c_out: int, pad_end: bool = False) -> None:
        super().__init__(c_in, c_out, 3, stride=2, padding=0 if pad_end else 1)
        self.pad_end = pad_end

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Up(nn.Conv2d):
    """Double the size (nearest neighbour), then a 3x3 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2))


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """h (1 + scale) + shift, for h (B, N, C) and scale, shift (B, C)."""
    return h * (1 + scale[:, None]) + shift[:, None]
