"""HalfUNet: the encoder of a U-Net with a linear head, for classifiers conditioned on the noise level."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.embed import ClockEmbedding
from diffusion.nets.layers import Down, PixelAttention, ResBlock, check, group_norm


class HalfUNet(nn.Module):
    """Residual blocks conditioned on the clock, downsampled between levels, then mean pooling and a linear head.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, sec. 4 and app. D, which pools by attention.

    Args:
        channels: channels C of the images.
        width: channels at full size, a multiple of 4.
        mults: channels of each level in units of width; each further level halves the size.
        blocks: residual blocks per level, >= 1.
        attention: levels with attention after each block.
        head_width: channels per attention head; 32 to 64 are fast.
        dropout: probability, in [0, 1), inside the residual blocks.
        num_classes: number of logits.
    Raises:
        ValueError: attention names a level that does not exist, or image sides are not divisible by 2^(levels - 1).
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        mults: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (2,),
        head_width: int = 32,
        dropout: float = 0.1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        last = len(mults) - 1
        if last < 0 or blocks < 1 or min(mults) < 1 or not set(attention) <= set(range(last + 1)):
            raise ValueError(
                "HalfUNet: expected mults >= 1, blocks >= 1, and attention at levels "
                f"0 .. {last}; got {list(mults)}, {blocks} and {list(attention)}"
            )
        self.channels, self.width, self.mults, self.blocks = channels, width, tuple(mults), blocks
        self.attention, self.head_width, self.dropout = tuple(attention), head_width, dropout
        self.num_classes, self.in_channels = num_classes, channels
        self.clock = ClockEmbedding(width, 4 * width)
        self.inc = nn.Conv2d(channels, width, 3, padding=1)
        self.parts, c = nn.ModuleList(), width
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                self.parts.append(ResBlock(c, mult * width, 4 * width, dropout))
                c = mult * width
                if level in attention:
                    self.parts.append(PixelAttention(c, head_width))
            if level < last:
                self.parts.append(Down(c, c))
        self.norm, self.head = group_norm(c), nn.Linear(c, num_classes)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        """(B, C, H, W) at clock (B,) -> logits (B, num_classes)."""
        check(self, x, 2 ** (len(self.mults) - 1), f"give fewer than {len(self.mults)} mults")
        features = F.silu(self.clock(clock))
        x = self.inc(x)
        for part in self.parts:
            x = part(x, features) if isinstance(part, ResBlock) else part(x)
        return self.head(F.silu(self.norm(x)).mean((2, 3)))
