"""What training minimises."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise.level import Level
from diffusion.noise.times import Times, Uniform
from diffusion.weights import MSE, Distance, Unit, Weight


class Terms(NamedTuple):
    """A batch's loss: the scalar to minimise, the weighted error of each image (B,), and their levels."""

    loss: Tensor
    mse: Tensor
    t: Level


def uniform(n: int) -> Tensor:
    """n uniform numbers in [0, 1), float64 on the CPU, from torch's global stream."""
    return torch.rand(n, dtype=torch.float64)


class Objective:
    """The weighted error of the predicted x_0, at random noise levels.

        L = E_{t, eps} mean_pixels distance(sqrt(weight) (x_0 - x_0_hat))

    By default the mean squared error of what the network says.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; weights: Kingma & Gao 2023, arXiv:2303.00848, sec. 3.

    Args:
        times: the law of the training times.
        weight: how much each level counts, once for all targets.
        distance: what an error costs.
        drop: probability, in [0, 1], that an image's label is replaced by the null row, drawn for each image:
            what classifier-free guidance needs (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
    Raises:
        ValueError: drop outside [0, 1].
    """

    def __init__(
        self, times: Times = Uniform(), weight: Weight = Unit(), distance: Distance = MSE(), drop: float = 0.1
    ) -> None:
        if not 0 <= drop <= 1:
            raise ValueError(f"Objective: drop is a probability in [0, 1], got {drop}")
        self.times, self.weight, self.distance, self.drop = times, weight, distance, float(drop)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition = Condition(),
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        uniform: Callable[[int], Tensor] = uniform,
    ) -> Terms:
        """The loss of a batch x0 (B, C, H, W).

        Args:
            noise: gives N(0, I) of a tensor's shape.
            uniform: gives n uniform numbers in [0, 1), float64 on the CPU; called for times, then for the drop.
        """
        schedule = denoiser.schedule
        times = self.times(uniform(len(x0)), schedule)
        correction = self.times.correction(times, schedule)
        t = schedule.level(times).like(x0)
        if cond.y is not None and self.drop:
            keep = (uniform(len(x0)) >= self.drop).to(x0.device, non_blocking=True)
            cond = cond._replace(keep=keep if cond.keep is None else keep & cond.keep)
        eps = noise(x0)
        error = denoiser(t.alpha * x0 + t.sigma * eps, t, cond).x0 - x0
        weight = self.weight(t, denoiser.target, schedule).sqrt()
        mse = self.distance(weight * error).flatten(1).mean(1)  # (B,)
        return Terms((mse * correction.to(mse, non_blocking=True)).mean(), mse, t)
