"""The denoiser: a network, a schedule and a target predict (x_0, eps) at any noise level."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.denoiser.chain import Conditioned, SelfConditioned
from diffusion.denoiser.hints import channels
from diffusion.denoiser.prediction import Condition, Prediction
from diffusion.denoiser.targets import Eps, Target
from diffusion.noise.level import Level
from diffusion.noise.schedule import NO_SIGNAL, Schedule
from diffusion.support.pretrained import tokens_of


class Denoiser(nn.Module):
    """A network's prediction of E[x_0 | x_t].

    Args:
        net: a `nets.base.Net`, or any module with forward(x (B, C, H, W), clock (B,), y=None, keep=None) ->
            (B, C, H, W) and any of Net's attributes that apply; one with `second_clock` takes `to` as well.
        schedule: the forward process that the network is trained on.
        target: what the network outputs.
        told: numbers per image of `Condition.told`, the last of the network's image_channels.
    Attributes:
        num_classes, context_dim, image_channels, self_condition, learn_variance, second_clock: copied from the network
            at construction; see `nets.base.Net`. Missing ones are 0 or False; image_channels is without `told`.
        tokens: the vocabulary of a network that is conditioned on text; None of others.
        conditional: whether the network receives the condition's y.
        precision: autocast dtype of the network; None leaves it to the caller.
    Raises:
        ValueError: no signal remains at t = 1, and x_0 cannot be recovered from the target without it.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, target: Target = Eps(), told: int = 0) -> None:
        super().__init__()
        signal = schedule.scales(torch.ones((), dtype=torch.float64))[0] >= NO_SIGNAL
        if target.needs_signal and not signal:
            raise ValueError(
                f"{type(target).__name__} divides by alpha, which is 0 to rounding at t = 1 for "
                f"{type(schedule).__name__}; choose the target V, X0, Velocity or EDM"
            )
        self.net, self.schedule, self.target = net, schedule, target
        # User-defined networks need not derive from Net; their attributes are read here only.
        self.num_classes: int = getattr(net, "num_classes", 0)
        self.context_dim: int = getattr(net, "context_dim", 0)
        self.image_channels: int = getattr(net, "image_channels", 0) - told
        self.told = told
        self.self_condition = bool(getattr(net, "self_condition", False))
        self.learn_variance = bool(getattr(net, "learn_variance", False))
        self.second_clock = bool(getattr(net, "second_clock", False))
        self.tokens = tokens_of(getattr(net, "tokens", None))
        self.conditional = bool(self.num_classes or self.context_dim or self.tokens)
        self.precision: torch.dtype | None = None
        self._scales_input = type(target).c_in is not Target.c_in  # skip multiplying by 1

    def forward(self, x: Tensor, t: Level, cond: Condition = Condition(), to: Level | None = None) -> Prediction:
        """The prediction at level t, one for the batch () or one per image (B,).

        With a second clock it is that of the flow map from t to another level: `Prediction.jump` to that level is where
        the probability flow takes x. To t itself, it is E[x_0 | x_t].

        Args:
            to: the other level, no noisier than t; by default `t.end`, or else t. No effect without a second clock.
        Raises:
            ValueError: the number of levels is neither 1 nor B, or the condition's image does not match the network.
        """
        to = t.end if to is None else to
        clock, more = self.clock(x, t), {}
        if self.second_clock:
            more["to"] = clock if to is None else self.clock(x, to)
        t = t.like(x)
        inputs = self.target.c_in(t) * x if self._scales_input else x
        if self.self_condition:
            previous = torch.zeros_like(inputs) if cond.previous is None else cond.previous
            inputs = torch.cat([inputs, previous], dim=1)
        if self.image_channels or cond.image is not None:
            inputs = torch.cat([inputs, self.fitted(cond.image, inputs)], dim=1)
        if self.told:
            told = inputs.new_zeros(len(x), self.told) if cond.told is None else cond.told.to(inputs)
            inputs = torch.cat([inputs, told[:, :, None, None].expand(-1, -1, *x.shape[-2:])], dim=1)
        with nullcontext() if self.precision is None else torch.autocast(x.device.type, self.precision):
            out, var = self.net(inputs, clock, cond.y, cond.keep, **more).to(x.dtype), None
        if out.shape[1] == 2 * x.shape[1]:
            out, var = out.chunk(2, dim=1)
        x0 = self.target.x0(x, out, t)
        return Prediction(x0, (x - t.alpha * x0) / t.sigma, var)

    def clock(self, x: Tensor, t: Level) -> Tensor:
        """The network's input (B,) for level t of the images x.

        Raises:
            ValueError: the number of levels is neither 1 nor B.
        """
        if t.t.numel() not in (1, len(x)):
            raise ValueError(f"Denoiser: expected one noise level or one per image ({len(x)}), got {t.t.numel()}")
        return self.schedule.clock(t.t).to(x.device, x.dtype, non_blocking=True).reshape(-1).expand(len(x))

    def fitted(self, image: Tensor | None, x: Tensor) -> Tensor:
        """A condition's image resized to x, (B, K, H, W), by nearest neighbour, so that a mask stays binary.

        Each pixel of a smaller image fills the block it is the mean of; smoothing is left to the network. Of a larger
        one, beside latents, r x r pixels become channels of one, if the network has as many (`hints.channels`).
        (Saharia et al. 2021, arXiv:2104.07636, use bicubic interpolation.)
        """
        if not self.image_channels:
            raise ValueError("got an image as a condition, but this network has image_channels 0; leave the image out")
        if image is None:
            raise ValueError(
                f"this network is conditioned on an image of {self.image_channels} channels, but none was given; "
                "pass image=, or --image FILE or --image test on the command line"
            )
        if image.ndim == 4 and image.shape[1] < self.image_channels == channels(image.shape[1:], x.shape[1:]):
            image = F.pixel_unshuffle(image, image.shape[-1] // x.shape[-1])
        if image.ndim != 4 or image.shape[:2] != (len(x), self.image_channels):
            raise ValueError(
                f"expected a condition image ({len(x)}, {self.image_channels}, H, W), got {tuple(image.shape)}"
            )
        return F.interpolate(image.to(x), x.shape[-2:]) if image.shape[-2:] != x.shape[-2:] else image.to(x)

    def encoded(self, y: Tensor | None) -> Tensor | None:
        """A condition's y, with tokens replaced by the outputs of the network's text encoder, so that it runs once.

        Tokens are returned as they are if the network's text encoder cannot be called by itself (ONNX).
        """
        encoder = getattr(self.net, "text", None)
        if self.tokens is None or encoder is None or y is None or y.is_floating_point():
            return y
        with nullcontext() if self.precision is None else torch.autocast(y.device.type, self.precision):
            return encoder.encode(y)

    def walk(self) -> "Denoiser | SelfConditioned":
        """The denoiser for one sampling walk, which remembers the previous x_0 if the network is self-conditioned."""
        return SelfConditioned(self) if self.self_condition else self

    def bind(self, cond: Condition) -> Conditioned:
        """This denoiser with the condition fixed, as guidance and samplers expect it."""
        return Conditioned(self, cond)

    def describe(self) -> str:
        """Network, schedule and target by name, in one line."""
        return ", ".join(type(part).__name__ for part in (self.net, self.schedule, self.target))
