"""Consistency: the sampler of consistency models."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import CLEAN, Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class Consistency(Sampler):
    """Jump to the clean image, then back to a level with fresh noise; the last step only jumps.

        x_s = alpha_s x_0 + sigma_s z,    x_0 = the flow map from t to the clean level

    For models trained with `FlowMap`: the x_0 of a denoiser is a mean, without the spread of the data. One network
    evaluation per step.
    Source: Song et al. 2023, arXiv:2303.01469, alg. 1.

    Args:
        steps: network evaluations, >= 1.
        grid: the levels of the walk, see Sampler.
    """

    maps = True

    def __init__(self, steps: int = 2, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t.until(CLEAN))
        x = s.alpha * pred.x0
        return (x + s.sigma * noise(x) if s.sigma > 0 else x), pred
