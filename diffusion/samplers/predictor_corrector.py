"""Predictor-corrector: a step of the reverse SDE, then Langevin steps at the new level."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise
from diffusion.samplers.euler_maruyama import EulerMaruyama
from diffusion.samplers.steps import Past


class PredictorCorrector(EulerMaruyama):
    """EulerMaruyama's step, followed by a few steps of Langevin dynamics at the new level.

        x_s <- x_s + e score + sqrt(2 e) z,    score = -eps / sigma_s,    e = 2 (snr sigma_s)^2

    The paper's e is 2 (snr |z| / |score|)^2 with norms over a batch; for x_s ~ p_s, |score| is |z| / sigma_s, and
    substituting this keeps an image independent of its batch. 1 + corrections evaluations per step.
    Source: Song et al. 2021, arXiv:2011.13456, alg. 1, 4 and 5.

    Args:
        steps: steps of the predictor, >= 1.
        corrections: Langevin steps after each, >= 0.
        snr: signal-to-noise ratio of a Langevin step, in (0, 1).
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: corrections < 0, or snr outside (0, 1).
    """

    def __init__(self, steps: int = 200, corrections: int = 1, snr: float = 0.16, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if corrections < 0 or not 0 < snr < 1:
            raise ValueError(
                f"PredictorCorrector: expected corrections >= 0 and snr in (0, 1), got {corrections} and {snr}"
            )
        self.corrections, self.snr = corrections, snr

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        x, pred = super().step(denoise, x, t, s, past, noise)
        for _ in range(self.corrections if s.sigma > 0 else 0):
            x = x - 2 * self.snr**2 * s.sigma * denoise(x, s).eps + 2 * self.snr * s.sigma * noise(x)
        return x, pred
