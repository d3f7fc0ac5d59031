"""PCA: the best linear codec of patches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.denoiser.codecs.base import Codec


class PCA(Codec):
    """The first principal components of factor x factor patches.

        code = E^T (patch - mean),    patch = E code + mean,    E (C factor^2, latent) the largest eigenvectors

    No linear codec of this width has a smaller squared error, which is the sum of the other eigenvalues. It is fitted
    in one pass over the images, without training, and is what an autoencoder has to beat.

    Args:
        channels: C of the images.
        latent: number of components, at most C factor^2.
        factor: size of the patches.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, channels: int = 1, latent: int = 4, factor: int = 4) -> None:
        width = channels * factor**2
        if channels < 1 or factor < 1 or not 1 <= latent <= width:
            raise ValueError(
                "PCA: channels and factor must be at least 1, latent in 1 .. channels factor^2; "
                f"got {channels}, {factor} and {latent}"
            )
        super().__init__(channels, latent, factor)
        self.register_buffer("basis", torch.eye(width, latent))  # (C factor^2, latent)
        self.register_buffer("mean", torch.zeros(width))

    def patches(self, x0: Tensor) -> Tensor:
        """The patches (B, C factor^2, h, w) of images (B, C, H, W)."""
        return F.pixel_unshuffle(x0.to(self.basis.dtype), self.factor)

    def code(self, x0: Tensor) -> Tensor:
        centred = self.patches(x0) - self.mean[:, None, None]
        return torch.einsum("bdhw,dk->bkhw", centred, self.basis)

    def image(self, code: Tensor) -> Tensor:
        patches = torch.einsum("bkhw,dk->bdhw", code.to(self.basis.dtype), self.basis) + self.mean[:, None, None]
        return F.pixel_shuffle(patches, self.factor)

    def prepare(self, images: Callable[[], Iterable[Tensor]]) -> None:
        n, total, squares = 0, 0.0, 0.0
        for x0 in images():
            rows = self.patches(x0).double().transpose(0, 1).flatten(1)  # (C factor^2, N)
            n, total, squares = n + rows.shape[1], total + rows.sum(1), squares + rows @ rows.T
        mean = total / n
        vectors = torch.linalg.eigh(squares / n - mean[:, None] * mean).eigenvectors.flip(1)[:, : self.latent]
        # The sign of an eigenvector is arbitrary: its largest entry is made positive.
        sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.basis.copy_(vectors * sign)
        self.mean.copy_(mean)
