"""The denoiser: a network, a schedule and a target make a guess of (x_0, eps) at any noise level."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.denoiser.targets import Eps, Target
from diffusion.noise.level import Level, broadcast
from diffusion.noise.schedule import Schedule


class Condition(NamedTuple):
    """What the image should be of.

    Attributes:
        y: class labels (B,) int64, or context vectors (B, D) float.
        keep: (B,) bool; False replaces y by the network's learned null row. None keeps all.
        guess: (B, C, H, W), the last guess of x_0 for a self-conditioned network. None is a guess of zeros.
        image: (B, K, h, w), for a network with `image_channels` K: a smaller, masked or other picture that it is shown
            beside x. It is never dropped: what classifier-free guidance leaves out is y alone.
    """

    y: Tensor | None = None
    keep: Tensor | None = None
    guess: Tensor | None = None
    image: Tensor | None = None


class Prediction(NamedTuple):
    """A guess at one level: x0 and eps, both (B, C, H, W), with x = alpha x0 + sigma eps always true.

    Attributes:
        var: (B, C, H, W) where a network learns the variance: from -1 for Var[x_s | x_t, x_0] to 1 for Var[x_t | x_s].
    """

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None


Denoise = Callable[[Tensor, Level], Prediction]


def predict(x: Tensor, x0: Tensor, t: Level, var: Tensor | None = None) -> Prediction:
    """The prediction that belongs to a guess of x_0: eps = (x - alpha x_0) / sigma."""
    return Prediction(x0, (x - t.alpha * x0) / t.sigma, var)


class Denoiser(nn.Module):
    """E[x_0 | x_t] as a network says it.

    Args:
        net: forward(x (B, C, H, W), clock (B,), y=None, keep=None) -> (B, C, H, W); knows no maths of diffusion.
            One that learns the variance says 2C channels, the target's C first. One with a true `self_condition`
            is given 2C channels, the second C its last guess of x_0. One with `image_channels` K > 0 is given K more,
            a condition's image.
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
        self.precision: torch.dtype | None = None  # of the network's matrix products; None: of whoever calls

    def forward(self, x: Tensor, t: Level, cond: Condition = Condition()) -> Prediction:
        """The guess at level t, one for the batch () or one an image (B,).

        Raises:
            ValueError: the number of levels is neither 1 nor B, or the image of the condition is not what the network
                takes.
        """
        if t.t.numel() not in (1, len(x)):
            raise ValueError(f"Denoiser: wanted one noise level or one an image ({len(x)}), got {t.t.numel()}")
        clock = self.schedule.clock(t.t).to(x.device, x.dtype, non_blocking=True).reshape(-1).expand(len(x))
        t = t.like(x)
        shown = self.target.c_in(t) * x
        if self.remembers:
            shown = torch.cat([shown, torch.zeros_like(shown) if cond.guess is None else cond.guess], dim=1)
        if self.image_channels or cond.image is not None:
            shown = torch.cat([shown, self.fitted(cond.image, shown)], dim=1)
        with nullcontext() if self.precision is None else torch.autocast(x.device.type, self.precision):
            out, var = self.net(shown, clock, cond.y, cond.keep).to(x.dtype), None
        if out.shape[1] == 2 * x.shape[1]:
            out, var = out.chunk(2, dim=1)
        return predict(x, self.target.x0(x, out, t), t, var)

    @property
    def remembers(self) -> bool:
        """The network is shown its last guess of x_0."""
        return bool(getattr(self.net, "self_condition", False))

    @property
    def image_channels(self) -> int:
        """Channels of the image that the network is shown beside x, 0 for none."""
        return getattr(self.net, "image_channels", 0)

    def fitted(self, image: Tensor | None, x: Tensor) -> Tensor:
        """A condition's image (B, K, H, W), of x's size: nearest, so that a mask stays a mask.

        A pixel of a smaller picture then fills the block that it is the mean of; the network may smooth it itself.
        (Saharia et al. 2021, arXiv:2104.07636, enlarge by bicubic interpolation.)
        """
        if not self.image_channels:
            raise ValueError("an image was given as a condition, but this network has no image_channels to take it")
        if image is None:
            raise ValueError(
                f"this network is shown an image of {self.image_channels} channels beside x, and none was given; "
                "give one as image=, or on the command line with --image FILE or --image test"
            )
        if image.ndim != 4 or image.shape[:2] != (len(x), self.image_channels):
            raise ValueError(
                f"wanted an image ({len(x)}, {self.image_channels}, H, W) as a condition, got {tuple(image.shape)}"
            )
        return F.interpolate(image.to(x), x.shape[-2:]) if image.shape[-2:] != x.shape[-2:] else image.to(x)

    def walk(self) -> "Denoiser | Walk":
        """The denoiser of one run of a sampler, with that run's memory if the network wants one."""
        return Walk(self) if self.remembers else self

    def bind(self, cond: Condition) -> Denoise:
        """This denoiser with the condition fixed: what guidance and samplers take."""
        return lambda x, t: self(x, t, cond)


class Walk:
    """A denoiser that is shown its own last guess: self-conditioning, the memory of one run of a sampler.

    Source: Chen et al. 2023, arXiv:2208.04202, alg. 2.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule, self.target, self.guess = denoiser, denoiser.schedule, denoiser.target, None

    def __call__(self, x: Tensor, t: Level, cond: Condition = Condition()) -> Prediction:
        guess = self.guess
        if guess is not None and len(guess) != len(x):  # guidance doubles the batch at some levels, the condition last
            guess = guess[-len(x) :] if len(guess) > len(x) else guess.repeat(len(x) // len(guess), 1, 1, 1)
        pred = self.denoiser(x, t, cond._replace(guess=guess))
        self.guess = pred.x0.detach().to(x.dtype)
        return pred

    def bind(self, cond: Condition) -> Denoise:
        return lambda x, t: self(x, t, cond)


def anywhere(denoise: Denoise, schedule: Schedule) -> Denoise:
    """Let `denoise` answer at levels made by `between`: at the schedule's level of that log-SNR, x scaled to it.

    Noisier than the schedule's end (churn in the first step) is asked at the end. A discrete network hears a
    fractional index.
    """

    def ask(x: Tensor, t: Level) -> Prediction:
        if not t.t.isnan().any():
            return denoise(x, t)
        near = schedule.level(schedule.time(t.log_snr))
        scale = torch.hypot(near.alpha, near.sigma) / torch.hypot(t.alpha, t.sigma)
        pred = denoise(broadcast(scale, x) * x, near)
        return predict(x, pred.x0, t.like(x), pred.var)

    return ask
