"""Where training looks: the law of the training times."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule


class Times(ABC):
    """Maps uniform random numbers to training times."""

    @abstractmethod
    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Times (B,) in (0, 1] from independent uniform numbers u (B,) in [0, 1)."""


class Uniform(Times):
    """Every time of the schedule is equally likely: the law of L_simple."""

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile(u)


class Stratified(Times):
    """One time from each of B equal slices of (0, 1]: each still uniform over batches, with less variance.

    Image i of a shuffled batch takes slice i, so that no image is tied to a slice.
    Source: Kingma et al. 2021, arXiv:2107.00630, app. I.1 (low-discrepancy sampler), with independent jitter.
    """

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile((torch.arange(len(u), dtype=u.dtype) + u) / len(u))
