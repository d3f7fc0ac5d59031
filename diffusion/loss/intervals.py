"""The levels of a flow map's training step: t > s >= r, the end r and the level s in between."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule

MOST = 1e4  # largest sigma / alpha that a gap is measured from: it is infinite where no signal remains


def levels(times: Tensor, schedule: Schedule) -> Level:
    """The levels at times (B,), 0 being clean (alpha 1, sigma 0) on every schedule."""
    clean = times <= 0
    alpha, sigma = schedule.scales(torch.where(clean, 1.0, times))
    return Level(times, torch.where(clean, 1.0, alpha), torch.where(clean, 0.0, sigma))


class End(ABC):
    """The law of the level r that the flow map ends at.

    Attributes:
        second_clock: whether the network must receive it.
    """

    second_clock = True

    @abstractmethod
    def __call__(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Times r (B,) for the times t (B,), 0 <= r <= t; 0 is clean.

        Args:
            uniform: returns n uniform numbers in [0, 1), float64 on the CPU.
        """


class Clean(End):
    """Always the clean image: a consistency model. The network needs no second clock."""

    second_clock = False

    def __call__(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        return torch.zeros_like(t)


class Shared(End):
    """r = t, which trains the denoiser itself, for all but a share of the images.

    Args:
        share: probability, in [0, 1], that r is not t.
    Raises:
        ValueError: share outside [0, 1].
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"{type(self).__name__}: share is a probability in [0, 1], got {share}")
        self.share = float(share)

    def __call__(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        moved = uniform(len(t)) < self.share
        return torch.where(moved, self.below(t, uniform), t)

    @abstractmethod
    def below(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        """Times r < t, (B,)."""


class Anywhere(Shared):
    """r uniform in time below t, or clean, where every walk ends: the ends of MeanFlow.

    Source: Geng et al. 2025, arXiv:2505.13447, sec. 4.3, with a normal law of logits.

    Args:
        share: probability that r is not t; the paper uses .75 for small images.
        clean: probability, in [0, 1], that such an r is clean.
    Raises:
        ValueError: a number outside [0, 1].
    """

    def __init__(self, share: float = 0.75, clean: float = 0.25) -> None:
        super().__init__(share)
        if not 0 <= clean <= 1:
            raise ValueError(f"Anywhere: clean is a probability in [0, 1], got {clean}")
        self.clean = float(clean)

    def below(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        u = uniform(len(t))
        return t * ((u - self.clean) / max(1 - self.clean, 1e-9)).clamp(min=0)


class Strides(Shared):
    """r = max(0, t - 1 / n), n a random power of two: the step of a walk with n steps.

    With fewest = most = n it is one stage of progressive distillation, with 1 to 128 the ends of shortcut models.
    Source: Salimans & Ho 2022, arXiv:2202.00512, alg. 2; Frans et al. 2024, arXiv:2410.12557, sec. 4.

    Args:
        fewest, most: limits of n, powers of two.
        share: probability that r is not t; shortcut models use .25.
    Raises:
        ValueError: limits that are no powers of two, or in the wrong order.
    """

    def __init__(self, fewest: int = 1, most: int = 128, share: float = 1.0) -> None:
        super().__init__(share)
        if not 1 <= fewest <= most or fewest & (fewest - 1) or most & (most - 1):
            raise ValueError(f"Strides: expected powers of two, fewest <= most; got {fewest} and {most}")
        self.fewest, self.most = fewest, most

    def below(self, t: Tensor, uniform: Callable[[int], Tensor]) -> Tensor:
        low, high = int(math.log2(self.fewest)), int(math.log2(self.most))
        n = 2 ** (low + (uniform(len(t)) * (high - low + 1)).floor())
        return (t - 1 / n).clamp(min=0)


class Gap(ABC):
    """The level s between t and the end r, by the progress of training."""

    @abstractmethod
    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        """Times s (B,) for the levels t and r, each (B,), float64 on the CPU; the caller raises those below r to it.

        Args:
            progress: the fraction of the training that is done, in [0, 1].
        """


class Whole(Gap):
    """s = r: no second evaluation. The target is x_0, as in `Objective`."""

    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        return r.t


class Halfway(Gap):
    """s halfway between t and r in time: the two steps that progressive distillation and shortcuts make one."""

    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        return (t.t + r.t) / 2


class ECT(Gap):
    """A gap in rho = sigma / alpha that shrinks by q in each stage of training:

        rho_s = rho_t max(0, 1 - (1 + 8 sigmoid(-rho_t)) / q^(a + 1)),    a = 0 .. stages - 1

    Below the least noisy training time s is clean. With q = 2 training begins as the denoiser's (s is often clean).
    Source: Geng et al. 2024, arXiv:2406.14548, eq. 12 and app. A (k = 8, b = 1).

    Args:
        q: > 1; one stage with q = 256 is the paper's short run.
        stages: of equal length, >= 1.
    Raises:
        ValueError: q <= 1 or stages < 1.
    """

    def __init__(self, q: float = 2.0, stages: int = 8) -> None:
        if q <= 1 or stages < 1:
            raise ValueError(f"ECT: expected q > 1 and stages >= 1, got {q} and {stages}")
        self.q, self.stages = float(q), stages

    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        rho = t.ratio.clamp(max=MOST)
        a = min(self.stages - 1, int(progress * self.stages))
        rho = rho * (1 - (1 + 8 * torch.sigmoid(-rho)) / self.q ** (a + 1)).clamp(min=0)
        times = schedule.time(-2 * rho.clamp(min=1e-12).log())
        return torch.where((rho > 0) & (times >= schedule.t_min), times, 0.0).minimum(t.t)


class Even(Gap):
    """s = t - 1 / n in time, n doubling from `first` to `last` in stages of equal length.

    Source: Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.4 (10 to 1,280 levels).

    Args:
        first, last: numbers of levels, 1 <= first <= last.
    Raises:
        ValueError: numbers out of order.
    """

    def __init__(self, first: int = 10, last: int = 1280) -> None:
        if not 1 <= first <= last:
            raise ValueError(f"Even: expected 1 <= first <= last, got {first} and {last}")
        self.first, self.last = first, last

    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        stages = math.ceil(math.log2(self.last / self.first)) + 1
        n = min(self.last, self.first * 2 ** min(stages - 1, int(progress * stages)))
        s = t.t - 1 / n
        return torch.where(s > 1e-9, s, 0.0)  # a rounding error of 0 is clean
