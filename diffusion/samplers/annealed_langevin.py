"""Annealed Langevin dynamics: the sampler of the original score networks."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class AnnealedLangevin(Sampler):
    """Langevin steps at each level, no step between levels, and a final step to x_0.

        x <- x + e / 2 score + sqrt(e) z,    score = -eps / sigma_t,    e = epsilon sigma_t^2

    The paper's step size is epsilon' sigma_t^2 / sigma_last^2: epsilon is epsilon' / sigma_last^2, 0.2 there.
    `inner` evaluations per step, one more in the last. Levels must be closely spaced, so that the Langevin steps can
    equilibrate at each; otherwise samples have too much spread.
    Source: Song & Ermon 2019, arXiv:1907.05600, alg. 1; the final x_0: Jolicoeur-Martineau et al. 2021,
    arXiv:2009.05475, sec. 3.1.

    Args:
        steps: number of levels, >= 1.
        inner: Langevin steps per level, >= 1.
        epsilon: size of a Langevin step in units of sigma_t^2, in (0, 2).
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: inner < 1, or epsilon outside (0, 2).
    """

    def __init__(self, steps: int = 100, inner: int = 10, epsilon: float = 0.2, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if inner < 1 or not 0 < epsilon < 2:
            raise ValueError(f"AnnealedLangevin: expected inner >= 1 and epsilon in (0, 2), got {inner} and {epsilon}")
        self.inner, self.epsilon = inner, epsilon

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        for _ in range(self.inner):
            pred = denoise(x, t)
            x = x - self.epsilon / 2 * t.sigma * pred.eps + self.epsilon**0.5 * t.sigma * noise(x)
        if s.sigma > 0:
            return x, pred
        pred = denoise(x, t)
        return pred.x0, pred
