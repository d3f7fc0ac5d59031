"""ResidualMLP: a residual perceptron for points in the plane and other small vectors."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, told
from diffusion.nets.layers import check, zero


class Block(nn.Module):
    """h + Linear(silu(Linear(silu(norm(h) (1 + a) + b)))), (a, b) = Linear(features); initially the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.tell = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), zero(nn.Linear(width, width))
        )

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        a, b = self.tell(features).chunk(2, dim=1)
        return h + self.body(self.norm(h) * (1 + a) + b)


class ResidualMLP(Net):  # not `MLP`: torchvision has one, which would make the short name in a config ambiguous
    """A residual perceptron over the flattened image; points in the plane are images (2, 1, 1).

    Args:
        channels: channels C of the images; for points, their number of coordinates.
        size: height and width of the images.
        width: features of the hidden layers, a multiple of 4.
        depth: residual blocks, >= 1.
        dropout: probability, in [0, 1), inside the blocks.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels and second_clock, see Net.
    Raises:
        ValueError: images of a different size, or invalid size or depth.
    """

    def __init__(
        self,
        channels: int = 2,
        size: Sequence[int] = (1, 1),
        width: int = 128,
        depth: int = 4,
        dropout: float = 0.0,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        if len(size) != 2 or min(*size, depth) < 1:
            raise ValueError(f"ResidualMLP: expected size [height, width] and depth >= 1, got {list(size)} and {depth}")
        self.size, self.width, self.depth, self.dropout = tuple(size), width, depth, dropout
        pixels = prod(size)
        self.clock = ClockEmbedding(width, width)
        self.second = SecondClock.of(self, width, width)
        self.condition = ConditionEmbedding.of(self, width)
        self.inc = nn.Linear(self.in_channels * pixels, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.outc = zero(nn.Linear(width, self.out_channels * pixels))

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x)
        if (came := tuple(x.shape[-2:])) != self.size:
            raise ValueError(
                f"ResidualMLP: expected images of size {list(self.size)}, got {list(came)}; set size {list(came)}"
            )
        features = told(self.clock, self.second, clock, to)
        if self.condition is not None:
            features = features + self.condition(y, keep, x.shape[0])
        features = F.silu(features)
        h = self.inc(x.flatten(1))
        for block in self.blocks:
            h = block(h, features)
        return self.outc(h).unflatten(1, (-1, *self.size))  # no norm, so that the output can scale with x
