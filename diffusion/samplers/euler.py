"""Euler's method for the probability flow ODE."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class Euler(Sampler):
    """Euler's method in the variable r = sigma / alpha, where the ODE is d(x / alpha) / dr = eps.

        x_s / alpha_s = x / alpha_t + (r_s - r_t) eps    =>    x_s = alpha_s x_0 + sigma_s eps

    The same step as DDIM with eta = 0, and as flow matching's Euler steps. One evaluation per step, first order.
    Source: Karras et al. 2022, arXiv:2206.00364, alg. 1; Song et al. 2021, arXiv:2010.02502, eq. 14.

    Args:
        steps: network evaluations, >= 1.
        grid: the levels of the walk, see Sampler.
    """

    convergence = 1

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        return pred.jump(s), pred
