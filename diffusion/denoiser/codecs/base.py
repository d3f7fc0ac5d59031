"""The interface of codecs, and the scaling of latents."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from diffusion.support.scaling import Scaling

MEASURES = ("shift", "scale", "fitted")


class Codec(nn.Module, ABC):
    """A map from images x_0 to latents z and back, part of a diffusion model and frozen while that trains.

        z = (code(x_0) - shift) / scale,    x_0 = image(z scale + shift)

    Shift and scale are the mean and the standard deviation of each channel over all training images, measured once by
    `fit`, so that every channel of the latents has mean 0 and standard deviation 1. The target EDM and the weight of
    that name then need sigma_data 1; the images that their default of 0.5 is for have half the deviation, so a level
    of EDM has a log-SNR that is higher by 2 log 2 with latents. Latents have no bounds.

    A subclass implements `code` and `image`. Its parameters and buffers are saved in the model's file.

    Args:
        channels: C of the images.
        latent: channels of the latents.
        factor: height and width of an image in units of those of its latent.
    """

    def __init__(self, channels: int, latent: int, factor: int) -> None:
        super().__init__()
        self.channels, self.latent, self.factor = channels, latent, factor
        self.register_buffer("shift", torch.zeros(latent, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(latent, dtype=torch.float32))
        self.register_buffer("fitted", torch.tensor(False))

    @abstractmethod
    def code(self, x0: Tensor) -> Tensor:
        """The latents (B, latent, H / factor, W / factor) of images (B, C, H, W), as the codec itself scales them."""

    @abstractmethod
    def image(self, code: Tensor) -> Tensor:
        """The images (B, C, H, W) of latents as `code` gives them."""

    @property
    def name(self) -> str:
        """The codec in words, for messages."""
        return type(self).__name__

    @property
    def mark(self) -> str:
        """The hash of all its weights and measures, which two models of the same latents share; "" without latents."""
        return fingerprint(self) if self.latent else ""

    @property
    def code_mark(self) -> str:
        """The hash of what `code` and `image` depend on: all weights without the measures."""
        return fingerprint(self, but=MEASURES)

    @property
    def measures(self) -> Scaling:
        """From codes to latents."""
        return Scaling("float32", tuple(self.shift.tolist()), tuple(self.scale.tolist()), bounded=False)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the latent of an image of shape (C, H, W).

        Raises:
            ValueError: a codec of other channels, or a height or width that the factor does not divide.
        """
        C, H, W = shape
        if C != self.channels:
            raise ValueError(f"{self.name}: a codec of {self.channels} channels, got images of {C}")
        f = self.factor
        if H % f or W % f:
            up = -(-H // f) * f, -(-W // f) * f
            raise ValueError(f"{self.name}: {H}x{W} is not divisible by its factor {f}; pad to {up[0]}x{up[1]}")
        return self.latent, H // f, W // f

    def encode(self, x0: Tensor) -> Tensor:
        """The latents of images (B, C, H, W), float32.

        Raises:
            ValueError: images of another shape than the codec takes.
        """
        self.latent_shape(x0.shape[1:])
        with torch.autocast(x0.device.type, enabled=False):
            return (self.code(x0) - self.shift[:, None, None]) / self.scale[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents (B, latent, h, w), float32."""
        with torch.autocast(z.device.type, enabled=False):
            return self.image(z * self.scale[:, None, None] + self.shift[:, None, None])

    @torch.no_grad()
    def fit(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Measure shift and scale on all training images, once: a codec that is fitted stays as it is.

        Args:
            images: starts a pass over all training images x_0, in batches (B, C, H, W).
        """
        if self.fitted:
            return
        self.prepare(images)
        self.measure(self.code(x0) for x0 in images())

    @torch.no_grad()
    def measure(self, codes: Iterable[Tensor]) -> None:
        """Shift and scale from the codes (B, latent, h, w) of all training images."""
        n, total, squares = 0, 0.0, 0.0
        for batch in codes:
            code = batch.double().transpose(0, 1).flatten(1)
            n, total, squares = n + code.shape[1], total + code.sum(1), squares + code.square().sum(1)
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6 * (mean.abs() + 1), std, 1.0))
        self.fitted.fill_(True)

    def prepare(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Fit what the codec consists of, before its latents are measured; nothing by default."""

    def train(self, mode: bool = True) -> "Codec":
        """Always in evaluation mode."""
        return super().train(False)


def fingerprint(net: nn.Module, but: Sequence[str] = ()) -> str:
    """The hash of a network's weights and buffers, without some of them: 12 hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in sorted((k, v) for k, v in net.state_dict().items() if k not in but):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]
