"""The interface of a sampler: a walk from noise to a clean image, one step at a time."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import AnyLevel, Denoise, Prediction
from diffusion.noise.grids import GRIDS, Grid, times
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.samplers.steps import Past

Noise = Callable[[Tensor], Tensor]


class Frame(NamedTuple):
    """A state of the walk: the level reached, x at that level, and the predicted x_0 of the step."""

    t: Level
    x: Tensor
    x0: Tensor


class Sampler(ABC):
    """n steps through n levels, the last one to the clean level. Subclasses define `step` and keep no state.

    Args:
        steps: number of steps, >= 1; at most T for a discrete schedule.
        grid: the levels of the walk: "trailing" starts at pure noise, "leading" ends at index 0, "linspace" does
            both; "quadratic", "karras" and "log_snr" put more steps at low noise.
    Attributes:
        convergence: theoretical order: the error of a deterministic walk falls like steps^-convergence, apart from its
            first steps and its last. None for random walks and adaptive step sizes. `diffusion check` measures it.
        maps: whether it needs a flow map, see `loss.flow_map`.
    Raises:
        ValueError: steps < 1, or an unknown grid.
    """

    convergence: int | None = None
    maps = False

    def __init__(self, steps: int = 50, grid: Grid = "trailing") -> None:
        if steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be at least 1, got {steps}")
        if grid not in GRIDS:
            raise ValueError(f"{type(self).__name__}: unknown grid {grid!r}; choose one of {', '.join(GRIDS)}")
        self.steps, self.grid = steps, grid

    def levels(self, schedule: Schedule) -> list[Level]:
        """The levels of the walk: the n levels of the grid, noisiest first, and the clean one."""
        grid = times(self.grid, schedule, self.steps)
        clean, levels = schedule.clean(), schedule.level(grid)
        return [*map(Level._make, zip(*map(torch.unbind, levels), strict=True)), clean]

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
            start, stop: indices in `levels` where the walk starts and ends, 0 <= start <= stop <= n; by default all.
                A walk in two parts equals the whole walk, except for multistep methods, which restart without a past.
        """
        levels = self.levels(schedule)[start : None if stop is None else stop + 1]
        past: Past = deque(maxlen=3)
        denoise = AnyLevel(denoise, schedule)
        for t, s in zip(levels[:-1], levels[1:], strict=True):
            x, pred = self.step(denoise, x, t, s, past, noise)
            past.append((t, pred))
            yield Frame(s, x, pred.x0)

    def sample(self, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise = torch.randn_like) -> Tensor:
        """The image (B, C, H, W) at the end of the walk."""
        for frame in self.iterate(denoise, x, schedule, noise):
            x = frame.x
        return x

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        """Step from level t to the less noisy s (both scalars): x at s, and the prediction at t."""
