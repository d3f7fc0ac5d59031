"""UNet: the network of DDPM, improved DDPM and ADM."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, Sinusoids, told
from diffusion.nets.layers import Down, Norm, PixelAttention, ResBlock, Up, check, group_norm, zero


class Stage(nn.Module):
    """A residual block, followed by attention if the level has it."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.attention(self.block(x, features))


class UNet(Net):
    """The U-Net of residual blocks and attention of DDPM, improved DDPM and ADM.

    Level l works at size H / (patch 2^l) with width mults[l] channels. Each of its `blocks` blocks and each
    downsampling leaves a skip connection, which one of the blocks + 1 on the way up concatenates. Every residual block
    is conditioned on the sum of clock and condition embeddings. The last convolution of each branch, and of the
    network, is initially 0.

    The defaults, except scale_shift, head_width and dropout, are DDPM's for CIFAR-10; scale_shift False gives its 35.7
    million parameters (35,746,307 with 3 channels and no classes), and head_width 256 its single head.
    Source: Ho et al. 2020, arXiv:2006.11239, app. B; Nichol and Dhariwal 2021, arXiv:2102.09672; Dhariwal and Nichol
    2021, arXiv:2105.05233, sec. 3. By default the clock's features are ours (`embed.features`), in the same number.
    The arguments from heads on give the details in which published checkpoints differ (docs/import.md).

    Args:
        channels: channels C of the images.
        width: channels at full size, a multiple of 4.
        mults: channels of each level in units of width, whole numbers or such that the product is one; each further
            level halves the size.
        blocks: residual blocks per level, >= 1.
        attention: levels with attention after each block. Level 1 of a 32x32 image has 16x16 pixels.
        head_width: channels per attention head; 32 to 64 are fast.
        scale_shift: the features scale and shift the second norm (ADM); False adds them before it (DDPM).
        resample_in_blocks: downsample and upsample inside residual blocks (ADM), not with a convolution (DDPM).
        dropout: probability, in [0, 1), inside the residual blocks.
        heads: attention heads at every level; 0 derives them from head_width.
        groups: of each GroupNorm; 0 is at most 32 of at least 4 channels.
        eps: of each GroupNorm.
        sinusoids: features of the clock: "any" for any schedule, "ddpm" and "adm" the published ones of an index.
        clock_scale: factor of the clock; 1000 / T where a network was trained with an index scaled to 1000.
        pad_end: downsampling convolutions pad right and bottom only.
        patch: side p of the patches of pixels that the network works on, p^2 C numbers at each place of level 0
            (Hoogeboom et al. 2023, arXiv:2301.11093, sec. 3.2); 1 for pixels. Level 0 of a 32x32 image with patches of
            2 has 16x16 places and costs a quarter.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: attention names a level that does not exist, head_width does not divide a level's channels, or image
            sides are not divisible by patch 2^(levels - 1); groups do not divide a level's channels.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 128,
        mults: Sequence[int | float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        head_width: int = 64,
        scale_shift: bool = True,
        resample_in_blocks: bool = False,
        dropout: float = 0.0,
        heads: int = 0,
        groups: int = 0,
        eps: float = 1e-5,
        sinusoids: Sinusoids = "any",
        clock_scale: float = 1.0,
        pad_end: bool = False,
        patch: int = 1,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        last = len(mults) - 1
        widths = [round(mult * width) for mult in mults]
        whole = all(w >= 1 and abs(w - mult * width) < 1e-6 for w, mult in zip(widths, mults, strict=True))
        if last < 0 or min(blocks, patch) < 1 or not whole or not set(attention) <= set(range(last + 1)):
            raise ValueError(
                "UNet: expected mults that give whole channels >= 1, blocks and patch >= 1, and attention at levels "
                f"0 .. {last}; got {list(mults)}, {blocks}, {patch} and {list(attention)}"
            )
        self.width, self.mults, self.blocks = width, tuple(mults), blocks
        self.attention, self.head_width, self.scale_shift = tuple(attention), head_width, scale_shift
        self.resample_in_blocks, self.dropout = resample_in_blocks, dropout
        self.heads, self.groups, self.eps = heads, groups, eps
        self.sinusoids, self.clock_scale, self.pad_end, self.patch = sinusoids, clock_scale, pad_end, patch
        norm = Norm(groups, eps)

        def block(c_in: int, c_out: int, resample: str = "") -> ResBlock:
            return ResBlock(c_in, c_out, 4 * width, dropout, scale_shift, resample, norm)

        def stage(c_in: int, c_out: int, attends: bool) -> Stage:
            attention = PixelAttention(c_out, head_width, heads=heads, norm=norm) if attends else nn.Identity()
            return Stage(block(c_in, c_out), attention)

        self.clock = ClockEmbedding(width, 4 * width, sinusoids, clock_scale)
        self.second = SecondClock.of(self, width, 4 * width, sinusoids, clock_scale)
        self.condition = ConditionEmbedding.of(self, 4 * width)
        self.inc = nn.Conv2d(self.in_channels * patch**2, width, 3, padding=1)
        self.downs = nn.ModuleList()
        skips, c = [width], width
        for level, w in enumerate(widths):
            for _ in range(blocks):
                self.downs.append(stage(c, w, level in attention))
                c = w
                skips.append(c)
            if level < last:
                self.downs.append(block(c, c, "down") if resample_in_blocks else Down(c, c, pad_end))
                skips.append(c)
        self.middle = nn.ModuleList([stage(c, c, True), stage(c, c, False)])
        self.ups = nn.ModuleList()
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.ups.append(stage(c + skips.pop(), w, level in attention))
                c = w
            if level:
                self.ups.append(block(c, c, "up") if resample_in_blocks else Up(c, c))
        self.norm = group_norm(c, norm)
        self.outc = zero(nn.Conv2d(c, self.out_channels * patch**2, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, self.patch * 2 ** (len(self.mults) - 1), f"give fewer than {len(self.mults)} mults")
        features = told(self.clock, self.second, clock, to)
        if self.condition is not None:
            features = features + self.condition(y, keep, x.shape[0])
        features = F.silu(features)

        def run(part: nn.Module, x: Tensor) -> Tensor:
            return part(x) if isinstance(part, (Down, Up)) else part(x, features)

        x = self.inc(F.pixel_unshuffle(x, self.patch))
        skips = [x]
        for part in self.downs:
            x = run(part, x)
            skips.append(x)
        for part in self.middle:
            x = run(part, x)
        for part in self.ups:
            x = run(part, torch.cat([x, skips.pop()], dim=1) if isinstance(part, Stage) else x)
        return F.pixel_shuffle(self.outc(F.silu(self.norm(x))), self.patch)
