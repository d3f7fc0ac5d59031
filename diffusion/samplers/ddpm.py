"""DDPM: ancestral sampling."""

from typing import Literal

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level, forward_var, learned_var, posterior_var
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class DDPM(Sampler):
    """Draw x_s from the Gaussian p(x_s | x_t), whose mean is that of q(x_s | x_t, x_0) at the predicted x_0.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - small) eps + sqrt(var) z

        small = Var[x_s | x_t, x_0],    large = Var[x_t | x_s],    learned = the network's interpolation

    The last step, to the clean level, adds no noise. Fewer steps than T respace the chain. One evaluation per step.
    Source: Ho et al. 2020, arXiv:2006.11239, alg. 2 and sec. 3.2; learned, respaced: arXiv:2102.09672, eq. 15, 19.

    Args:
        steps: network evaluations, >= 1.
        variance: "small" is exact for a single data point, "large" for Gaussian data; "learned" lies between
            them and needs a network trained with Objective(vlb=...).
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: variance is unknown, or "learned" for a network that outputs none.
    """

    def __init__(
        self, steps: int = 1000, variance: Literal["small", "large", "learned"] = "small", grid: Grid = "trailing"
    ) -> None:
        super().__init__(steps, grid)
        if variance not in ("small", "large", "learned"):
            raise ValueError(f"DDPM: variance must be 'small', 'large' or 'learned', got {variance!r}")
        self.variance = variance

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        small = posterior_var(s, t)
        x = s.alpha * pred.x0 + (s.sigma**2 - small).sqrt() * pred.eps
        if s.sigma == 0:
            return x, pred
        var = small if self.variance == "small" else forward_var(s, t)
        if self.variance == "learned":
            if pred.var is None:
                raise ValueError("DDPM: this network outputs no variance; choose the variance small or large")
            var = learned_var(pred.var, small, var)
        return x + var.sqrt() * noise(x), pred
