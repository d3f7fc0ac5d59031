"""Latents of a walk, seen as images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.noise.level import Level
from diffusion.samplers import Frame

AT_ONCE = 256  # images that pass a codec together, which bounds its memory


@dataclass(frozen=True)
class Pixels:
    """A codec as the pipeline uses it: without gradients, and with images in the range of the data.

    Args:
        codec: between images and latents.
        bounded: whether images lie in [-1, 1]; decoded ones are then clamped to it.
    """

    codec: Codec
    bounded: bool = True

    @torch.no_grad()
    def encode(self, x0: Tensor) -> Tensor:
        """The latents of images, on the device of the codec; with `Identity` the images themselves."""
        if isinstance(self.codec, Identity):
            return x0
        device = next(self.codec.buffers()).device
        return torch.cat([self.codec.encode(part.to(device)) for part in x0.split(AT_ONCE)])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The images of latents, on the device of the codec; with `Identity` the latents themselves."""
        if isinstance(self.codec, Identity):
            return z
        device = next(self.codec.buffers()).device
        x0 = torch.cat([self.codec.decode(part.to(device)) for part in z.split(AT_ONCE)])
        return x0.clamp(-1, 1) if self.bounded else x0

    def state(self, x: Tensor, t: Level) -> Tensor:
        """A noisy state in pixels: std decode(x / std), where std^2 = alpha^2 + sigma^2 bounds the variance."""
        if isinstance(self.codec, Identity):
            return x
        std = (t.alpha**2 + t.sigma**2).sqrt().to(x)
        return std * self.decode(x / std)

    def frames(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The frames of a walk over latents in pixels, each decoded when it is looked at."""
        return frames if isinstance(self.codec, Identity) else (Decoded(frame, self) for frame in frames)


@dataclass(eq=False)
class Decoded:
    """A `Frame` of latents with the attributes of one of images."""

    latent: Frame
    pixels: Pixels

    @property
    def t(self) -> Level:
        return self.latent.t

    @cached_property
    def x(self) -> Tensor:
        return self.pixels.state(self.latent.x, self.latent.t)

    @cached_property
    def x0(self) -> Tensor:
        return self.pixels.decode(self.latent.x0)
