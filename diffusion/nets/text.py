"""TextEncoder: a small transformer over the tokens of a caption, and attention from pixels to its outputs."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.nets.embed import code
from diffusion.nets.layers import Norm, attention, group_norm, heads_of, zero
from diffusion.support.tokens import PAD, Tokens


class Layer(nn.Module):
    """A pre-norm transformer layer over tokens (B, L, W) with a mask of what is attended to, (B, 1, 1, L) bool."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, L, W = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = attention(q, k, v, mask)
        x = x + self.proj(a.transpose(1, 2).reshape(B, L, W))
        return x + self.mlp(self.norm2(x))


class BaseTextEncoder(nn.Module):
    """The interface of text encoders: outputs for a text's tokens, and one for the whole text.

    Padding is replaced by a learned output, so that a text is the same in a batch with any others, and what attends
    needs no mask. A dropped text, and one without tokens, is this output alone: the null condition.

    Attributes:
        length: tokens L of a text.
        null: (2, W), the learned output of a whole text and of a token.
    """

    length: int
    null: nn.Parameter

    def forward(self, y: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        """(B, 1 + L, W): the output for the whole text, then those of its tokens.

        Args:
            y: tokens (B, L) int64; or outputs (B, 1 + L, W) of `encode`, which are used as they are; None is "no
                condition" for the whole batch.
            keep: (B,) bool; False replaces y by the null condition.
        """
        null = torch.cat([self.null[:1], self.null[1:].expand(self.length, -1)])
        if y is None:
            return null.expand(batch, -1, -1)
        out = y.to(null.dtype) if y.is_floating_point() else self.encode(y)
        return out if keep is None else torch.where(keep[:, None, None], out, null.to(out.dtype))

    def encode(self, ids: Tensor) -> Tensor:
        """The outputs (B, 1 + L, W) of tokens (B, L) int64.

        Raises:
            ValueError: another length, or numbers that are no tokens.
        """
        raise NotImplementedError

    def check(self, ids: Tensor) -> None:
        """Refuse what are no tokens (B, L)."""
        if ids.ndim != 2 or ids.shape[1] != self.length or ids.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: expected tokens (B, {self.length}), got {ids.dtype} {tuple(ids.shape)}"
            )

    def nulled(self, out: Tensor, some: Tensor, there: Tensor) -> Tensor:
        """Outputs (B, 1 + L, W) with those of padding replaced: some (B, 1), there (B, L) bool."""
        null = self.null.to(out.dtype)
        whole = torch.where(some, out[:, 0], null[0])
        each = torch.where(there[:, :, None], out[:, 1:], null[1])
        return torch.cat([whole[:, None], each], dim=1)


class TextEncoder(BaseTextEncoder):
    """Outputs for a text's tokens, and one for the whole text.

        h = transformer(embedding of tokens + positions),    (whole, tokens) = (mean of h, norm(h))

    Args:
        tokens: the vocabulary, plain.
        width: features W of an output, a multiple of `heads`, even.
        depth: layers, >= 1.
        heads: attention heads.
    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(self, tokens: dict[str, Any], width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if width < 2 or width % 2 or width % heads or depth < 1:
            raise ValueError(
                f"TextEncoder: wanted an even width divisible by {heads} heads, and depth >= 1; got {width} and {depth}"
            )
        vocabulary = Tokens.of(tokens)
        self.width, self.length = width, vocabulary.length
        self.embed = nn.Embedding(vocabulary.size, width)
        nn.init.normal_(self.embed.weight, std=0.5)  # beside positions of root mean square 0.7
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.null = nn.Parameter(torch.randn(2, width))  # of a whole text, of a token

    def encode(self, ids: Tensor) -> Tensor:
        self.check(ids)
        there = ids != PAD
        some = there.any(1, keepdim=True)
        mask = (there | ~some)[:, None, None]  # an empty text attends to itself, and is not used
        x = self.embed(ids) + code(torch.arange(self.length, device=ids.device), self.width).to(self.embed.weight.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        share = there.to(x.dtype) / there.sum(1, keepdim=True).clamp(min=1)
        return self.nulled(torch.cat([(share[:, :, None] * x).sum(1, keepdim=True), x], dim=1), some, there)


class TextAttention(nn.Module):
    """x + attention from queries of x to the outputs of a text (B, 1 + L, W); initially the identity.

    Source: Rombach et al. 2022, arXiv:2112.10752, sec. 3.3.

    Args:
        channels: features C of x: an image (B, C, H, W), or tokens (B, N, C).
        width: features W of the text.
        heads: attention heads, which divide C.
        norm: the GroupNorm of an image; None leaves x, tokens that are normed already, and returns the added part only.
    """

    def __init__(self, channels: int, width: int, heads: int, norm: Norm | None = None) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention: {heads} heads do not divide {channels} channels")
        self.heads = heads
        self.norm = None if norm is None else group_norm(channels, norm)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(width, 2 * channels)
        self.proj = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        if self.norm is None:
            return self.attend(x, text)
        return x + self.attend(self.norm(x).flatten(2).transpose(1, 2), text).transpose(1, 2).reshape(x.shape)

    def attend(self, x: Tensor, text: Tensor) -> Tensor:
        """What tokens x (B, N, C) receive from a text (B, L, W)."""
        B, N, C = x.shape
        q = self.q(x).view(B, N, self.heads, -1).transpose(1, 2)
        k, v = self.kv(text).view(B, text.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class Pooled(nn.Linear):
    """The output for a whole text, mapped to a network's features."""

    def forward(self, text: Tensor) -> Tensor:
        return super().forward(text[:, 0])


def image_attention(channels: int, width: int, head_width: int, heads: int, norm: Norm) -> TextAttention:
    """Attention of an image's pixels to a text, with heads as of `PixelAttention`."""
    return TextAttention(channels, width, heads or heads_of(channels, head_width), norm)
