"""DiT: a transformer over patches with adaptive layer norms driven by clock and condition."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, code
from diffusion.nets.layers import MultiHead, check, modulate, zero


def positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Position encodings (rows columns, width) of a grid: the first half encodes the column, the second the row."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.cat([code(v.flatten(), width // 2) for v in (column, row)], dim=1)


class Block(nn.Module):
    """A transformer block with adaLN-zero; initially the identity.

        (a1, b1, g1, a2, b2, g2) = Linear(silu(c)),    initially 0
        x <- x + g1 attention(norm(x) (1 + a1) + b1)
        x <- x + g2 mlp(norm(x) (1 + a2) + b2)

    Source: Peebles and Xie 2023, arXiv:2212.09748, sec. 3.2 and fig. 3.
    """

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attend = MultiHead(width, heads)
        inner = int(ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))
        self.tell = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        a1, b1, g1, a2, b2, g2 = self.tell(features).chunk(6, dim=1)
        x = x + g1[:, None] * self.attend(modulate(self.norm(x), a1, b1))
        return x + g2[:, None] * self.mlp(modulate(self.norm(x), a2, b2))


class DiT(Net):
    """A transformer over patches of p x p pixels, with adaLN-zero and fixed sine-cosine positions; any image size.

    The paper's sizes (width, depth, heads): S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16.
    Source: Peebles and Xie 2023, arXiv:2212.09748, sec. 3.2 and tab. 1. The clock's features are ours
    (`embed.features`), in the same number.

    Args:
        channels: channels C of the images.
        patch: side p of a patch in pixels; divides height and width. Halving it quadruples the number of tokens.
        width: features per token, a multiple of 4.
        depth: number of blocks, >= 1.
        heads: attention heads; 32 to 64 channels per head are fast.
        ratio: hidden width of the perceptrons in units of width.
        facts: learn_variance, self_condition, num_classes, context_dim and image_channels, see Net.
    Raises:
        ValueError: width is not divisible by 4 and heads, or image sides are not divisible by patch.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        if width % 4 or min(patch, width, depth) < 1:
            raise ValueError(
                f"DiT: expected width a multiple of 4, patch and depth >= 1; got {width}, {patch} and {depth}"
            )
        self.patch, self.width, self.depth, self.heads, self.ratio = patch, width, depth, heads, ratio
        self.clock = ClockEmbedding(256, width)
        self.condition = ConditionEmbedding.of(self, width)
        self.inc = nn.Linear(self.in_channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.tell = nn.Linear(width, 2 * width)
        self.outc = nn.Linear(width, self.out_channels * patch**2)
        self.start()

    def start(self) -> None:
        """Initialise: Xavier, small embeddings, and 0 for the modulation and the output layer (adaLN-zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        small = [self.clock[0].weight, self.clock[2].weight]
        if self.condition is not None:
            small += [self.condition.embed.weight, self.condition.null]
        for p in small:
            nn.init.normal_(p, std=0.02)
        for module in (*(block.tell for block in self.blocks), self.tell, self.outc):
            zero(module)

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, self.patch, "give another patch")
        rows, columns = (n // self.patch for n in x.shape[-2:])
        features = self.clock(clock)
        if self.condition is not None:
            features = features + self.condition(y, keep, x.shape[0])
        features = F.silu(features)
        x = self.inc(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))  # (B, N, width)
        x = x + positions(rows, columns, self.width, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, features)
        x = self.outc(modulate(self.norm(x), *self.tell(features).chunk(2, dim=1)))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)
