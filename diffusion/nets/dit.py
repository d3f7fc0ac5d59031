"""DiT: a transformer over patches with adaptive layer norms driven by clock and condition."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.base import Net
from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding, SecondClock, code, told
from diffusion.nets.frozen_text import text_encoder
from diffusion.nets.layers import MultiHead, attention, check, modulate, zero
from diffusion.nets.text import Pooled, TextAttention


def positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Position encodings (rows columns, width) of a grid: the first half encodes the column, the second the row."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.cat([code(v.flatten(), width // 2) for v in (column, row)], dim=1)


def angles(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Angles (rows columns, width / 2) for the features of a grid's tokens: half are of the row, half of the column.

    w_k = 10000^(-4k / width), k = 0 .. width/4 - 1, times the index of the row or the column.
    """
    w = 10000 ** (-4 * torch.arange(width // 4, device=device) / width)
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.cat([v.flatten()[:, None] * w for v in (row, column)], dim=1)


def rotated(x: Tensor, by: Tensor) -> Tensor:
    """Features (..., N, D) with the pairs (x_j, x_{j + D/2}) rotated by angles (N, D / 2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = by.cos().to(x.dtype), by.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryHeads(MultiHead):
    """Self-attention whose normalised queries and keys are rotated, so that their products depend on distances.

    Source: Su et al. 2021, arXiv:2104.09864, sec. 3.2, for rows and columns; normalised queries and keys: Dehghani et
    al. 2023, arXiv:2302.05442, sec. 2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        if width // heads % 4:
            raise ValueError(
                f"DiT: modern needs heads of a multiple of 4 channels, got {width} channels, {heads} heads"
            )
        self.gain = nn.Parameter(torch.ones(2, width // heads))  # of queries and keys

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (
            rotated(F.rms_norm(u, u.shape[-1:], gain.to(u.dtype), 1e-6), by)
            for u, gain in zip((q, k), self.gain, strict=True)
        )
        a = attention(q, k, v)
        return self.proj(a.transpose(1, 2).reshape(B, N, -1))


class SwiGLU(nn.Module):
    """Linear(silu(a) b), (a, b) = Linear(x). Source: Shazeer 2020, arXiv:2002.05202, eq. 5."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inc, self.outc = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inc(x).chunk(2, dim=-1)
        return self.outc(F.silu(a) * b)


def normed(width: int, modern: bool) -> nn.Module:
    """The norm of a token's features, without parameters: the modulation has them."""
    return (nn.RMSNorm if modern else nn.LayerNorm)(width, eps=1e-6, elementwise_affine=False)


class Block(nn.Module):
    """A transformer block with adaLN-zero; initially the identity.

        (a1, b1, g1, a2, b2, g2) = Linear(silu(c)),    initially 0
        x <- x + g1 attention(norm(x) (1 + a1) + b1)
        x <- x + attention of norm(x) to the text,      initially 0, if there is one
        x <- x + g2 mlp(norm(x) (1 + a2) + b2)

    Without modulation (a, b, g) = (0, 0, 1), and the output layers of both branches are initially 0.
    Source: Peebles and Xie 2023, arXiv:2212.09748, sec. 3.2 and fig. 3.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, modern: bool = False, modulated: bool = True, text_width: int = 0
    ) -> None:
        super().__init__()
        self.norm = normed(width, modern)
        self.attend = (RotaryHeads if modern else MultiHead)(width, heads)
        inner = int(ratio * width)
        plain = not modern and nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))
        self.mlp = plain or SwiGLU(width, max(1, 2 * inner // 3))
        self.tell = nn.Linear(width, 6 * width) if modulated else None
        self.read = TextAttention(width, text_width, heads) if text_width else None

    def last(self) -> list[nn.Module]:
        """The layers that are 0 in a block that is the identity."""
        if self.tell is not None:
            return [self.tell]
        return [self.attend.proj, self.mlp.outc if isinstance(self.mlp, SwiGLU) else self.mlp[-1]]

    def forward(self, x: Tensor, features: Tensor | None, text: Tensor | None, *by: Tensor) -> Tensor:
        if self.tell is None:
            x = x + self.attend(self.norm(x), *by)
            if self.read is not None:
                x = x + self.read(self.norm(x), text)
            return x + self.mlp(self.norm(x))
        a1, b1, g1, a2, b2, g2 = self.tell(features).chunk(6, dim=1)
        x = x + g1[:, None] * self.attend(modulate(self.norm(x), a1, b1), *by)
        if self.read is not None:
            x = x + self.read(self.norm(x), text)
        return x + g2[:, None] * self.mlp(modulate(self.norm(x), a2, b2))


class DiT(Net):
    """A transformer over patches of p x p pixels, with adaLN-zero and fixed sine-cosine positions; any image size.

    The paper's sizes (width, depth, heads): S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16.
    For 64 to 256 pixels: patches of 4 to 16 pixels (256 tokens), `bottleneck` 128, `modern`, the target X0 and the
    weight `VelocityWeight` (JiT; a network need not output the noise of a large patch, which has more numbers than a
    token).
    With `context` the clock and the condition are tokens of the sequence, too: one of each is repeated with learned
    positions and put before the image's tokens at block `since`, from which on every image token can attend to them;
    their outputs are dropped. JiT has 32 class tokens from a third of its blocks on; the clock's are ours. With
    `modulated` false they replace adaLN, so that the network hears of both only in the sequence, and the blocks'
    branches start from zero output layers (the in-context variant of DiT has clock and class at all blocks).
    Source: Peebles and Xie 2023, arXiv:2212.09748, sec. 3.2 and tab. 1; Li and He 2025, arXiv:2511.13720 (JiT). The
    clock's features are ours (`embed.features`), in the same number.

    Args:
        channels: channels C of the images.
        patch: side p of a patch in pixels; divides height and width. Halving it quadruples the number of tokens.
        width: features per token, a multiple of 4.
        depth: number of blocks, >= 1.
        heads: attention heads; 32 to 64 channels per head are fast.
        ratio: hidden width of the perceptrons in units of width.
        bottleneck: width of a linear layer between a patch and its token, 0 for none.
        modern: RMSNorm, SwiGLU of 2/3 of the hidden width, normalised queries and keys, and rotary positions beside
            the fixed ones.
        context: tokens of the clock, and as many of the condition if there is one; 0 for none.
        since: the block, from 0, that these tokens enter at; in [0, depth).
        modulated: adaLN; False leaves the clock and the condition to the tokens, and needs context > 0 and since 0.
        text_width: features of the text encoder, with tokens; every block attends to them.
        text_depth: its layers; a pretrained one has its own.
        facts: learn_variance, self_condition, num_classes, context_dim, image_channels, second_clock, tokens, see Net.
    Raises:
        ValueError: width is not divisible by 4 and heads, image sides are not divisible by patch, or there are neither
            tokens nor adaLN.
    """

    reads_text = True

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        bottleneck: int = 0,
        modern: bool = False,
        context: int = 0,
        since: int = 0,
        modulated: bool = True,
        text_width: int = 128,
        text_depth: int = 2,
        **facts: Any,
    ) -> None:
        super().__init__(channels=channels, **facts)
        if width % 4 or min(patch, width, depth) < 1 or bottleneck < 0:
            raise ValueError(
                "DiT: expected width a multiple of 4, patch and depth >= 1, bottleneck >= 0; got "
                f"{width}, {patch}, {depth} and {bottleneck}"
            )
        if context < 0 or not 0 <= since < depth or not modulated and (not context or since):
            raise ValueError(
                "DiT: expected context >= 0, since in [0, depth), and without modulated context >= 1 and since 0; got "
                f"context {context}, since {since} of {depth}, modulated {modulated}"
            )
        self.patch, self.width, self.depth, self.heads, self.ratio = patch, width, depth, heads, ratio
        self.bottleneck, self.modern = bottleneck, modern
        self.context, self.since, self.modulated = context, since, modulated
        self.text_width, self.text_depth = text_width, text_depth
        self.clock = ClockEmbedding(256, width)
        self.second = SecondClock.of(self, 256, width)
        self.condition = ConditionEmbedding.of(self, width)
        self.text = text_encoder(self.tokens, text_width, text_depth)
        self.pooled = Pooled(text_width, width) if self.tokens else None
        numbers = self.in_channels * patch**2
        narrow = (nn.Linear(numbers, bottleneck), nn.Linear(bottleneck, width)) if bottleneck else ()
        self.inc = nn.Sequential(*narrow) if narrow else nn.Linear(numbers, width)
        tokens = context * (1 if self.condition is None and not self.tokens else 2)
        self.places = nn.Parameter(torch.empty(tokens, width)) if tokens else None
        reads = text_width if self.tokens else 0
        self.blocks = nn.ModuleList(Block(width, heads, ratio, modern, modulated, reads) for _ in range(depth))
        self.norm = normed(width, modern)
        self.tell = nn.Linear(width, 2 * width) if modulated else None
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
        if self.places is not None:
            nn.init.normal_(self.places, std=0.02)
        reads = [block.read.proj for block in self.blocks if block.read is not None]
        for module in (*reads, *(m for block in self.blocks for m in block.last()), self.tell, self.outc):
            if module is not None:
                zero(module)
        if self.second is not None:
            self.second.start()

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); see Net for extra channels in and out."""
        check(self, x, self.patch, "give another patch")
        rows, columns = (n // self.patch for n in x.shape[-2:])
        heard = [told(self.clock, self.second, clock, to)]
        if self.condition is not None:
            heard.append(self.condition(y, keep, x.shape[0]))
        text = None if self.text is None else self.text(y, keep, x.shape[0])
        if self.pooled is not None:
            heard.append(self.pooled(text))
        features = F.silu(sum(heard)) if self.modulated else None
        x = self.inc(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))  # (B, N, width)
        x = x + positions(rows, columns, self.width, x.device).to(x.dtype)
        by = (angles(rows, columns, self.width // self.heads, x.device),) if self.modern else ()
        for k, block in enumerate(self.blocks):
            if self.context and k == self.since:
                tokens = torch.stack(heard, 1).repeat_interleave(self.context, 1) + self.places
                x = torch.cat([tokens.to(x.dtype), x], dim=1)
                by = tuple(F.pad(angle, (0, 0, tokens.shape[1], 0)) for angle in by)  # not rotated
            x = block(x, features, text, *by)
        x = self.norm(x[:, -rows * columns :])
        x = self.outc(x if self.tell is None else modulate(x, *self.tell(features).chunk(2, dim=1)))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)
