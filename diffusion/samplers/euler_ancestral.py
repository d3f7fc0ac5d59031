"""Euler with fresh noise in every step."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class EulerAncestral(Sampler):
    """Euler's step to a level below s, then noise up to s; r = sigma / alpha.

        up = eta r_s sqrt(1 - r_s^2 / r_t^2),    down = sqrt(r_s^2 - up^2)
        x_s = alpha_s (x_0 + down eps + up z)

    The same distribution as DDIM with the same eta; eta = 1 is DDPM with the small variance. One evaluation per step.
    Source: k-diffusion, sample_euler_ancestral; Song et al. 2021, arXiv:2010.02502, eq. 16.

    Args:
        steps: network evaluations, >= 1.
        eta: 0 is Euler, 1 is ancestral sampling, in [0, 1].
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: eta outside [0, 1].
    """

    def __init__(self, steps: int = 50, eta: float = 1.0, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"EulerAncestral: eta must lie in [0, 1], got {eta}")
        self.eta = float(eta)
        self.convergence = 1 if eta == 0 else None

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        up = self.eta * s.ratio * (1 - (s.ratio / t.ratio) ** 2).sqrt()  # valid at alpha_t = 0: the ratio is inf
        x = s.alpha * pred.x0 + s.alpha * (s.ratio**2 - up**2).sqrt() * pred.eps
        return (x + s.alpha * up * noise(x) if up > 0 else x), pred
