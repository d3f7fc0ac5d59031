"""DDIM: denoising diffusion implicit models."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level, posterior_var
from diffusion.samplers.base import Noise, Past, Sampler


class DDIM(Sampler):
    """Deterministic steps that keep x_0 and eps fixed between two levels, or partly random ones.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - var) eps + sqrt(var) z,    var = eta^2 Var[x_s | x_t, x_0]

    eta = 1 is DDPM with the small variance. One network evaluation a step.
    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.

    Args:
        steps: network evaluations, >= 1.
        eta: scales the standard deviation of the fresh noise; 0 is deterministic, 1 is DDPM, in [0, 1].
        grid: which levels, see Sampler.
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
        pred = denoise(x, t)
        var = self.eta**2 * posterior_var(s, t)
        x = s.alpha * pred.x0 + (s.sigma**2 - var).sqrt() * pred.eps
        return (x + var.sqrt() * noise(x) if var > 0 else x), pred
