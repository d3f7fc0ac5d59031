"""Network evaluations: counted during sampling, and predicted beforehand."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction, predict
from diffusion.denoiser.codecs.base import Codec
from diffusion.generation.cascade import Cascade
from diffusion.generation.pipeline import Pipeline
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
            self.add(len(x))
            return denoise(x, t)

        return counted

    def add(self, n: int) -> None:
        """Count n images."""
        self.images += n
        self.tell(n)

    def decoded(self, codec: Codec) -> "Counted":
        """A copy around the decoded guidance, which counts here."""
        return Counted(self.guidance.decoded(codec), self.add)


def counted(pipeline: Pipeline, tell: Callable[[int], object]) -> tuple[Pipeline, list[Counted]]:
    """The pipeline with the guidance of every stage counted, and the counters."""
    mine = Counted(pipeline.guidance, tell)
    if not isinstance(pipeline, Cascade):
        return replace(pipeline, guidance=mine), [mine]
    base, before = counted(pipeline.base, tell)
    return replace(pipeline, guidance=mine, base=base), [*before, mine]


def cost(pipeline: Pipeline) -> int:
    """Network evaluations per image, of all stages; an estimate for adaptive samplers."""
    return sum(evaluations(stage.sampler, stage.denoiser.schedule) for stage in pipeline.stages)


def evaluations(sampler: Sampler, schedule: Schedule) -> int:
    """Network evaluations per image, measured on a single pixel; an estimate for adaptive samplers."""
    calls = 0

    def denoise(x: Tensor, t: Level) -> Prediction:
        nonlocal calls
        calls += 1
        return predict(x, torch.zeros_like(x), t)

    sampler.sample(denoise, torch.full((1, 1, 1, 1), schedule.prior_std), schedule)
    return calls
