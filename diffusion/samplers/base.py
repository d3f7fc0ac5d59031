"""What a sampler is: a walk of the image from noise to clean, one step at a time."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction, anywhere
from diffusion.noise.grids import GRIDS, Grid, times
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule

Noise = Callable[[Tensor], Tensor]
Past = deque[tuple[Level, Prediction]]  # newest last; three are enough for every multistep method

FAR = 100.0  # a step that divides sigma / alpha by more is no small step: eps times sigma / alpha would drown x_0


class Frame(NamedTuple):
    """A state of the walk: the level reached, the image there, and the guess of x_0 that led to it."""

    t: Level
    x: Tensor
    x0: Tensor


class Sampler(ABC):
    """n steps through n levels and on to the clean one. A subclass gives `step` and keeps no state.

    Args:
        steps: number of steps, >= 1; at most T for a discrete schedule.
        grid: which levels: "trailing" starts at pure noise, "leading" ends at index 0, "linspace" does both;
            "quadratic", "karras" and "log_snr" put more steps near the image.
    Attributes:
        convergence: theoretical order of the walk: the error of a deterministic one falls like steps^-convergence, but
            for its first steps and its last. None for a random walk, and for one that chooses its own steps.
            `diffusion check` measures it.
    Raises:
        ValueError: steps < 1, or an unknown grid.
    """

    convergence: int | None = None

    def __init__(self, steps: int = 50, grid: Grid = "trailing") -> None:
        if steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be at least 1, got {steps}")
        if grid not in GRIDS:
            raise ValueError(f"{type(self).__name__}: unknown grid {grid!r}; there are {', '.join(GRIDS)}")
        self.steps, self.grid = steps, grid

    def levels(self, schedule: Schedule) -> list[Level]:
        """Where the walk stops: the n levels of the grid, noisiest first, and the clean one."""
        grid = schedule.level(times(self.grid, schedule, self.steps))  # all at once
        return [*map(Level._make, zip(*(v.unbind() for v in grid), strict=True)), schedule.clean()]

    @torch.no_grad()
    def iterate(
        self,
        denoise: Denoise,
        x: Tensor,
        schedule: Schedule,
        noise: Noise = torch.randn_like,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Frame]:
        """Yield a frame after each step.

        Args:
            x: (B, C, H, W), N(0, prior_std^2) noise, or an image at the level where the walk starts.
            start, stop: walk from one place in `levels` to another, 0 <= start <= stop <= n; the whole way by default.
                A walk in two parts is the whole walk, but for multistep methods, which start again without a past.
        """
        levels = self.levels(schedule)[start : None if stop is None else stop + 1]
        past: Past = deque(maxlen=3)
        denoise = anywhere(denoise, schedule)
        for t, s in zip(levels[:-1], levels[1:], strict=True):
            x, pred = self.step(denoise, x, t, s, past, noise)
            past.append((t, pred))
            yield Frame(s, x, pred.x0)

    def sample(self, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise = torch.randn_like) -> Tensor:
        """The end of the walk, (B, C, H, W)."""
        for frame in self.iterate(denoise, x, schedule, noise):
            x = frame.x
        return x

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        """From level t to the less noisy s (both scalars): the image at s, and the prediction at t."""


def jump(pred: Prediction, s: Level) -> Tensor:
    """The plain first-order step: x_0 and eps as they are, at level s."""
    return s.alpha * pred.x0 + s.sigma * pred.eps


def abrupt(t: Level, s: Level) -> bool:
    """Only the first-order step is left: s is clean, or t has (nearly) no signal, as Flow and Cosine at t = 1."""
    return bool(s.sigma == 0) or bool(t.alpha * s.sigma * FAR < t.sigma * s.alpha)


def lam(t: Level) -> Tensor:
    """log(alpha / sigma), the clock of the exponential integrators: half the log-SNR."""
    return t.log_snr / 2


def signal(past: Past) -> list[tuple[Level, Prediction]]:
    """What a multistep method may use of the past, newest first: levels without signal have no log-SNR."""
    return [(t, pred) for t, pred in reversed(past) if t.alpha > 0]
