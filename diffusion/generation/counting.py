"""Network evaluations: counted during sampling, and predicted beforehand."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction, predict
from diffusion.guidance import Guidance, Wrapper
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.samplers import Sampler


class Counted(Wrapper):
    """Guidance that counts in `images` the images that the network was evaluated for; a guided pair counts once.

    Args:
        guidance: the wrapped guidance.
        tell: called with the number of images at each evaluation.
    """

    def __init__(self, guidance: Guidance, tell: Callable[[int], object] = lambda n: None) -> None:
        super().__init__(guidance)
        self.tell, self.images = tell, 0

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        denoise = self.guidance(denoiser, cond)

        def counted(x: Tensor, t: Level) -> Prediction:
            self.images += len(x)
            self.tell(len(x))
            return denoise(x, t)

        return counted


def evaluations(sampler: Sampler, schedule: Schedule) -> int:
    """Network evaluations per image, measured on a single pixel; an estimate for adaptive samplers."""
    calls = 0

    def denoise(x: Tensor, t: Level) -> Prediction:
        nonlocal calls
        calls += 1
        return predict(x, torch.zeros_like(x), t)

    sampler.sample(denoise, torch.full((1, 1, 1, 1), schedule.prior_std), schedule)
    return calls
