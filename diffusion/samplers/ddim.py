"""DDIM: denoising diffusion implicit models."""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level, posterior_var
from diffusion.noise.schedule import Schedule
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class DDIM(Sampler):
    """Deterministic steps that hold x_0 and eps fixed between two levels, or partly random ones.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - var) eps + sqrt(var) z,    var = eta^2 Var[x_s | x_t, x_0]

    eta = 1 is DDPM with the small variance. One network evaluation per step. A network with a second clock is told s if
    eta = 0: the step is then that of its flow map, exact at any number of steps.
    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.

    Args:
        steps: network evaluations, >= 1.
        eta: scales the standard deviation of the fresh noise; 0 is deterministic, 1 is DDPM, in [0, 1].
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: eta outside [0, 1].
    """

    def __init__(self, steps: int = 50, eta: float = 0.0, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM: eta must lie in [0, 1], got {eta}")
        self.eta = float(eta)
        self.convergence = 1 if eta == 0 else None

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t if self.eta else t.until(s))
        if not self.eta:
            return pred.jump(s), pred
        var = self.eta**2 * posterior_var(s, t)
        x = s.alpha * pred.x0 + (s.sigma**2 - var).sqrt() * pred.eps
        return (x + var.sqrt() * noise(x) if var > 0 else x), pred

    @torch.no_grad()
    def invert(self, denoise: Denoise, x0: Tensor, schedule: Schedule, iterations: int = 5) -> Tensor:
        """The noise (B, C, H, W) that this sampler, with eta = 0, maps to the images x0: its steps inverted.

            x_t = alpha_t / alpha_s (x_s - sigma_s eps(x_t)) + sigma_t eps(x_t)        where signal dominates at s
            x_t = sigma_t / sigma_s (x_s - alpha_s x_0(x_t)) + alpha_t x_0(x_t)        where noise dominates

        x_t is on both sides. One iteration predicts at the x_t extrapolated from the previous step, as published,
        with an error of first order in the step; more iterations solve the equation, if steps are not too large.
        Source: Song et al. 2021, arXiv:2010.02502, sec. 4.3 and eq. 13; iterated: Pan et al. 2023, arXiv:2307.10829.

        Args:
            iterations: evaluations per step, >= 1.
        Raises:
            ValueError: eta > 0, which makes a random walk that cannot be inverted, or iterations < 1.
        """
        if self.eta or iterations < 1:
            raise ValueError(f"DDIM.invert: expected eta = 0 and iterations >= 1, got {self.eta} and {iterations}")
        levels = self.levels(schedule)[::-1]
        x, pred = x0, None
        for s, t in zip(levels[:-1], levels[1:], strict=True):
            x_t = t.alpha * x if pred is None else pred.jump(t)
            for _ in range(iterations):
                pred = denoise(x_t, t)
                if s.sigma > s.alpha:
                    x_t = t.sigma / s.sigma * (x - s.alpha * pred.x0) + t.alpha * pred.x0
                else:
                    x_t = t.alpha / s.alpha * (x - s.sigma * pred.eps) + t.sigma * pred.eps
            x = x_t
        return x
