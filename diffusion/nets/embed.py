"""Embeddings of the clock and of the condition."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion.nets.base import Net


def code(clock: Tensor, width: int) -> Tensor:
    """Sinusoidal encoding of the clock: concat[sin(t w), cos(t w)], w_k = 10000^(-2k / width), k = 0 .. width/2 - 1.

    Args:
        clock: (B,), an index 0 .. T-1 for discrete schedules; any real number works.
        width: even number of features.
    Returns:
        (B, width) float32.
    """
    k = torch.arange(width // 2, device=clock.device, dtype=torch.float32)
    angles = clock.float()[:, None] * 10000 ** (-2 * k / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def codes(clock: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """`code` of the clock at each of several widths."""
    return [code(clock, width) for width in widths]


def features(clock: Tensor, width: int) -> Tensor:
    """Features of any schedule's clock: one half `code`, one half sinusoids of s = sign(t) log(1 + |t|).

        concat[code(t, width / 2), sin(s w), cos(s w)],    w_k from 0.5 to 8, evenly in log w

    The fastest sinusoid of `code` has a period of 2 pi: suitable for an index 0 .. 999, but nearly linear over EDM's
    log(sigma) / 4, which spans 2.7. The logarithm maps both to a few units and is one-to-one.

    Args:
        clock: (B,), any real numbers.
        width: a multiple of 4.
    Returns:
        (B, width) float32.
    """
    t = clock.float()
    s = t.sign() * t.abs().log1p()
    w = 2 ** torch.linspace(-1, 3, width // 4, device=clock.device)
    waves = s[:, None] * w
    return torch.cat([code(t, width // 2), waves.sin(), waves.cos()], dim=1)


def waves_ddpm(clock: Tensor, width: int) -> Tensor:
    """DDPM's features of an index: concat[sin(t w), cos(t w)], w_k = 10000^(-k / (width/2 - 1)); see `code`.

    Source: Ho et al. 2020, arXiv:2006.11239 (their code).
    """
    k = torch.arange(width // 2, device=clock.device, dtype=torch.float32)
    angles = clock.float()[:, None] * torch.exp(-math.log(10000) * k / (width // 2 - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def waves_adm(clock: Tensor, width: int) -> Tensor:
    """ADM's features of an index: concat[cos(t w), sin(t w)], w_k = 10000^(-k / (width/2)); see `code`.

    Source: Dhariwal and Nichol 2021, arXiv:2105.05233 (their code).
    """
    return code(clock, width).roll(width // 2, 1)


Sinusoids = Literal["any", "ddpm", "adm"]
SINUSOIDS = {"any": features, "ddpm": waves_ddpm, "adm": waves_adm}


class ClockEmbedding(nn.Sequential):
    """Embedding (B, width) of the clock (B,): its features, then Linear, an activation, Linear.

    Args:
        waves: number of clock features, a multiple of 4.
        width: output features.
        sinusoids: the features: "any" are those of `features`, for any schedule; "ddpm" and "adm" are the published
            ones, for an index 0 .. 999.
        scale: factor of the clock before the features, for an index that does not end at 999.
        act: the activation.
    Raises:
        ValueError: waves is not a multiple of 4, or the sinusoids are unknown.
    """

    def __init__(
        self,
        waves: int,
        width: int,
        sinusoids: Sinusoids = "any",
        scale: float = 1.0,
        act: type[nn.Module] = nn.SiLU,
    ) -> None:
        if waves < 4 or waves % 4:
            raise ValueError(f"the number of clock features must be a multiple of 4, got {waves}")
        if sinusoids not in SINUSOIDS:
            raise ValueError(f"sinusoids: wanted one of {', '.join(SINUSOIDS)}, got {sinusoids!r}")
        super().__init__(nn.Linear(waves, width), act(), nn.Linear(width, width))
        self.waves, self.sinusoids, self.scale = waves, sinusoids, scale

    def forward(self, clock: Tensor) -> Tensor:
        clock = clock if self.scale == 1 else self.scale * clock
        return super().forward(SINUSOIDS[self.sinusoids](clock, self.waves).to(self[0].weight.dtype))


class SecondClock(ClockEmbedding):
    """Embedding of the clock of the level that a step ends at; initially 0, so that it changes nothing."""

    def __init__(self, waves: int, width: int, sinusoids: Sinusoids = "any", scale: float = 1.0) -> None:
        super().__init__(waves, width, sinusoids, scale)
        self.start()

    def start(self) -> None:
        """Set the last layer to 0."""
        for p in self[-1].parameters():
            nn.init.zeros_(p)

    @classmethod
    def of(cls, net: Net, *args: Any, **options: Any) -> "SecondClock | None":
        """The embedding of a network's second clock; None for a network without one."""
        return cls(*args, **options) if net.second_clock else None


def told(first: nn.Module, second: nn.Module | None, clock: Tensor, to: Tensor | None) -> Tensor:
    """The embedding of the clock, plus that of the second clock if there is one; `to` is the clock by default."""
    return first(clock) if second is None else first(clock) + second(clock if to is None else to)


class ConditionEmbedding(nn.Module):
    """Embedding of labels or context vectors, with a learned null embedding for "no condition".

    `keep` selects the null embedding, never a reserved label or value: an all-zero context is a valid condition.

    Args:
        num_classes: number of classes, for labels y (B,) int64 in [0, num_classes); 0 for none.
        context_dim: width D of context vectors y (B, D); 0 for none. At most one of the two is positive.
        width: output features.
    """

    def __init__(self, num_classes: int, context_dim: int, width: int) -> None:
        super().__init__()
        if num_classes and context_dim:
            raise ValueError("a network takes labels or context vectors, not both; set num_classes or context_dim to 0")
        self.num_classes = num_classes
        self.embed = nn.Embedding(num_classes, width) if num_classes else nn.Linear(context_dim, width)
        self.null = nn.Parameter(torch.randn(width))

    @classmethod
    def of(cls, net: Net, width: int) -> "ConditionEmbedding | None":
        """The embedding of what a network is conditioned on; None for an unconditional network."""
        return cls(net.num_classes, net.context_dim, width) if net.num_classes or net.context_dim else None

    def forward(self, y: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        """(B, width). y None is "no condition" for the whole batch."""
        if y is None:
            return self.null.expand(batch, -1)
        features = self.embed(y if self.num_classes else y.to(self.embed.weight.dtype))
        return features if keep is None else torch.where(keep[:, None], features, self.null.to(features.dtype))
