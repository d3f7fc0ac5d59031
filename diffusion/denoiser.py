"""The denoiser: a network, a schedule and a target make a guess of (x_0, eps) at any noise level."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.targets import Eps, Target


class Condition(NamedTuple):
    """What the image should be of.

    Attributes:
        y: class labels (B,) int64, or context vectors (B, D) float.
        keep: (B,) bool; False replaces y by the network's learned null row. None keeps all.
    """

    y: Tensor | None = None
    keep: Tensor | None = None


class Prediction(NamedTuple):
    """A guess at one level: x0 and eps, both (B, C, H, W), with x = alpha x0 + sigma eps always true."""

    x0: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, Level], Prediction]


def predict(x: Tensor, x0: Tensor, t: Level) -> Prediction:
    """The prediction that belongs to a guess of x_0: eps = (x - alpha x_0) / sigma."""
    return Prediction(x0, (x - t.alpha * x0) / t.sigma)


class Denoiser(nn.Module):
    """E[x_0 | x_t] as a network says it.

    Args:
        net: forward(x (B, C, H, W), clock (B,), y=None, keep=None) -> (B, C, H, W); knows no maths of diffusion.
        schedule: the forward process that the network is trained on.
        target: what the network says.
    Raises:
        ValueError: the schedule leaves no signal at t = 1, and the target needs some to give x_0.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, target: Target = Eps()) -> None:
        super().__init__()
        if target.needs_signal and schedule.scales(torch.ones((), dtype=torch.float64))[0] == 0:
            raise ValueError(
                f"{type(target).__name__} divides by alpha, which {type(schedule).__name__} brings to 0 at t = 1; "
                "choose the target V, X0, Velocity or EDM"
            )
        self.net, self.schedule, self.target = net, schedule, target

    def forward(self, x: Tensor, t: Level, cond: Condition = Condition()) -> Prediction:
        """The guess at level t, one for the batch () or one an image (B,).

        Raises:
            ValueError: the number of levels is neither 1 nor B.
        """
        if t.t.numel() not in (1, len(x)):
            raise ValueError(f"Denoiser: wanted one noise level or one an image ({len(x)}), got {t.t.numel()}")
        clock = self.schedule.clock(t.t).to(x.device, x.dtype, non_blocking=True).reshape(-1).expand(len(x))
        t = t.like(x)
        out = self.net(self.target.c_in(t) * x, clock, cond.y, cond.keep)
        return predict(x, self.target.x0(x, out.to(x.dtype), t), t)

    def bind(self, cond: Condition) -> Denoise:
        """This denoiser with the condition fixed: what guidance and samplers take."""
        return lambda x, t: self(x, t, cond)
