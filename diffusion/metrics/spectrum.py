"""The radial power spectrum of images: how much detail of each size they have."""

import math

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Metric, Reference, Score
from diffusion.metrics.pixels import Pixels

ROUNDING = (2 / 255) ** 2 / 12  # variance of the rounding to 8 bits of values in [-1, 1]
BATCH = 256


class Spectrum(Metric):
    """The difference between the mean power spectra of samples and of training images, in decibels.

        P_k = mean over images and the ring k of |FFT(x - mean x)|^2 / (H W)
        d_k = 10 log10((P_k + r) / (real P_k + r)),   r: the variance of rounding to 8 bits
        spectrum = (mean_k d_k^2)^(1/2)
        spectrum_high = mean of d_k over the upper half of the frequencies, 1/4 cycle per pixel and more

    The root mean square covers the rings of every channel. `spectrum_high` has a sign: below 0 the samples are too
    smooth, above 0 they have noise or artefacts. Over all samples and as many training images.
    Source: the azimuthal average after Durall et al. 2020, arXiv:2003.01826, eq. 3; the root mean square of decibels is
    the log-spectral distance of Gray & Markel 1976, IEEE Trans. ASSP 24(5) 380-391.
    """

    key = "spectrum"
    better = {"spectrum": "low", "spectrum_high": "floor"}

    def missing(self, samples: Features, reference: Reference) -> str:
        if samples.images.shape[-2:] == (1, 1):
            return "needs images of more than one pixel"
        return super().missing(samples, reference)

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        power, wanted = (spectra(v.images) + ROUNDING for v in (images, real.pick(slice(max(len(images), 2)))))
        mean, wanted = power.mean(0), wanted.mean(0)  # (C, K)
        d = 10 * (mean / wanted).log10()
        slope = 10 / math.log(10) * (power / mean - 1)  # of d, by an image's weight: (N, C, K)
        value = d.square().mean().sqrt()
        own = (slope * d).mean((1, 2)) / value if value else slope.new_zeros(len(slope))
        high = frequencies(*images.images.shape[-2:]) >= 0.25
        return {
            "spectrum": Score(float(value), own, images.labels),
            "spectrum_high": Score(float(d[:, high].mean()), slope[..., high].mean((1, 2)), images.labels),
        }


def spectra(x: Tensor | Pixels) -> Tensor:
    """The power of images (N, C, H, W) at each of `frequencies`, (N, C, K) float64; white noise has its variance.

    The mean of each image is removed first.
    """
    H, W = x.shape[-2:]
    ring, K = rings(H, W).flatten(), len(frequencies(H, W))
    count = torch.bincount(ring, minlength=K + 1).clamp(min=1)
    found = []
    for part in x.split(BATCH):
        part = part.double()
        power = torch.fft.fft2(part - part.mean((-2, -1), keepdim=True)).abs().square().flatten(2) / (H * W)
        total = power.new_zeros(*power.shape[:2], K + 1).index_add_(2, ring, power)
        found.append((total / count)[..., 1:])
    return torch.cat(found)


def frequencies(H: int, W: int) -> Tensor:
    """The middle of each ring in cycles per pixel, (K,): multiples of 1 / min(H, W), or of the longer side's for lines.

    The last ones, beyond 1/2, are diagonal frequencies alone.
    """
    return torch.arange(1, int(rings(H, W).max()) + 1) / unit(H, W)


def rings(H: int, W: int) -> Tensor:
    """The ring of each frequency of an H x W transform, (H, W) int64: the nearest multiple; 0 is the mean's alone."""
    fy, fx = torch.fft.fftfreq(H, dtype=torch.float64), torch.fft.fftfreq(W, dtype=torch.float64)
    ring = ((fy[:, None] ** 2 + fx**2).sqrt() * unit(H, W) + 0.5).floor().long().clamp(min=1)
    ring[0, 0] = 0
    return ring


def unit(H: int, W: int) -> int:
    """The inverse of the width of a ring."""
    return min(H, W) if min(H, W) > 1 else max(H, W)
