"""Hints: images derived from x_0 that a network is conditioned on, so that it learns to reconstruct x_0 from them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.support.scaling import DTYPES, Scaling


class Hint(ABC):
    """The known part of an image: a `Condition.image` derived from x_0 in training and from a user's picture later."""

    @abstractmethod
    def shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        """(K, h, w) of the hint for images (C, H, W).

        Raises:
            ValueError: images of this size are not supported.
        """

    @abstractmethod
    def __call__(self, x0: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """The hint (B, K, h, w) of images x0 (B, C, H, W).

        Args:
            noise: returns N(0, I) of a tensor's shape; the only source of randomness in a hint.
        """

    @abstractmethod
    def read(self, picture: Tensor, image: Sequence[int]) -> Tensor:
        """The hint (N, K, h, w) for a user's pictures.

        Args:
            picture: (N, C, h, w) in [-1, 1], or with an alpha channel in addition, opaque where it is above 0.
            image: (C, H, W) of the images to generate.
        Raises:
            ValueError: the pictures have the wrong size, or lack a channel this hint needs.
        """

    def show(self, hint: Tensor, image: Sequence[int]) -> Tensor:
        """The hint as viewable pictures (N, C, H, W) in [-1, 1]."""
        return F.interpolate(hint[:, : image[0]], tuple(image[1:]))


def channels(hint: Sequence[int], latent: Sequence[int]) -> int:
    """Channels of a hint (K, h, w) beside latents (C, H, W): K r^2 if its sides are r times theirs, else K.

    Hints of models of latents are in pixels. `Denoiser.fitted` folds r x r pixels of a larger one into channels.
    """
    (K, h, w), (_, H, W) = hint, latent
    return K * (h // H) ** 2 if h > H and (h % H, w % W) == (0, 0) and h // H == w // W else K


def uniform(noise: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of a tensor's shape: the normal CDF of normal numbers."""
    return torch.special.ndtr(noise(like).float()).clamp(max=1 - 2**-24)


class LowResolution(Hint):
    """The mean of each factor x factor block, for super-resolution and as a later stage of a cascade.

    With `noise`, noise of a random strength is added to the means and the strength is given as an extra channel, which
    every network accepts as it accepts an image. The network then learns how far to trust its input, and the strength
    can be chosen when it is sampled: 0 for a user's picture, more for a generated one (`augmented`).

        hint = mean + s z,    s ~ U(0, noise)

    In units of the means, alpha mean + sigma z of the forward process has s = sigma / alpha.
    Source: Saharia et al. 2021, arXiv:2104.07636, sec. 2; conditioning augmentation, by noise (non-truncated) and by
    blur: Ho et al. 2021, arXiv:2106.15282.

    Args:
        factor: side of a block, in pixels, >= 2; it divides height and width.
        noise: largest standard deviation, >= 0, of the added noise, for pixels in [-1, 1].
        blur: in training, half of the means are blurred by a Gaussian of standard deviation U(0.4, 0.6) pixels; for
            images from 128 pixels.
    Raises:
        ValueError: factor < 2 or noise < 0.
    """

    def __init__(self, factor: int = 4, noise: float = 0.0, blur: bool = False) -> None:
        if factor < 2 or noise < 0:
            raise ValueError(f"LowResolution: factor must be at least 2 and noise at least 0, got {factor} and {noise}")
        self.factor, self.noise, self.blur = factor, float(noise), blur

    def shape(self, image):
        C, H, W = image
        if H % self.factor or W % self.factor:
            raise ValueError(f"LowResolution: factor {self.factor} does not divide images of {H}x{W}")
        return C + (self.noise > 0), H // self.factor, W // self.factor

    def __call__(self, x0, noise=torch.randn_like):
        mean = F.avg_pool2d(x0, self.factor)
        if self.blur:
            u, std = (uniform(noise, mean[:, :1, :1, :1]).to(mean) for _ in range(2))
            mean = torch.where(u < 0.5, blurred(mean, 0.4 + 0.2 * std), mean)
        if not self.noise:
            return mean
        return self._noised(mean, self.noise * uniform(noise, mean[:, :1, :1, :1]).to(mean), noise)

    def augmented(self, mean: Tensor, strength: float, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """The hint (B, K, h, w) of generated small images (B, C, h, w) with noise of one strength.

        Raises:
            ValueError: the strength is outside [0, noise], where the network was trained.
        """
        if not 0 <= strength <= self.noise:
            raise ValueError(
                f"the strength of the noise must lie in 0 .. {self.noise:g}, the noise that the model was trained "
                f"with (model.hint.noise); got {strength:g}"
            )
        return self._noised(mean, torch.full_like(mean[:, :1, :1, :1], strength), noise) if self.noise else mean

    def _noised(self, mean: Tensor, strength: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([mean + strength * noise(mean), strength.expand_as(mean[:, :1])], dim=1)

    def read(self, picture, image):
        (C, H, W), (K, h, w) = image, self.shape(image)
        x = picture[:, :C]
        if tuple(x.shape[-2:]) == (H, W):
            x = F.avg_pool2d(x, self.factor)
        if tuple(x.shape[1:]) != (C, h, w):
            raise ValueError(
                f"expected pictures of {h}x{w} pixels, or {H}x{W} to be reduced to that, with {C} channels; "
                f"got {'x'.join(map(str, x.shape[-2:]))} with {x.shape[1]}"
            )
        return F.pad(x, (0, 0, 0, 0, 0, K - C))  # strength 0


def blurred(x: Tensor, std: Tensor) -> Tensor:
    """Images (B, C, h, w) blurred by a Gaussian of a standard deviation per image (B, 1, 1, 1), below 0.7 pixels.

    The weights exp(-k^2 / (2 std^2)), |k| <= 2, sum to 1; pixels beyond the border are those of the border.
    """
    weights = [torch.exp(-(k**2) / (2 * std**2)) for k in range(3)]
    whole = weights[0] + 2 * weights[1] + 2 * weights[2]
    for axis in (2, 3):
        n = x.shape[axis]
        wide = F.pad(x, (0, 0, 2, 2) if axis == 2 else (2, 2, 0, 0), mode="replicate")
        x = sum(weights[abs(k)] / whole * wide.narrow(axis, 2 + k, n) for k in range(-2, 3))
    return x


class Masked(Hint):
    """The image with rectangles cut out, and a channel that is 1 where it is known, for inpainting.

    Unknown pixels are 0, mid-grey (Palette fills them with noise; the mask carries the same information). The loss is
    taken over the whole image, not over the holes alone.
    Source: Saharia et al. 2022, arXiv:2111.05826, sec. 4.2 and app. A.

    Args:
        low: smallest side of a rectangle, in (0, 1], as a fraction of the image's.
        high: largest side, in [low, 1].
        holes: rectangles per image, >= 1, each of random size and position; they may overlap.
    Raises:
        ValueError: low or high out of range, or holes < 1.
    """

    def __init__(self, low: float = 0.3, high: float = 0.7, holes: int = 1) -> None:
        if not 0 < low <= high <= 1 or holes < 1:
            raise ValueError(f"Masked: expected 0 < low <= high <= 1 and holes >= 1, got {low}, {high} and {holes}")
        self.low, self.high, self.holes = float(low), float(high), holes

    def shape(self, image):
        return image[0] + 1, *image[1:]

    def __call__(self, x0, noise=torch.randn_like):
        B, _, H, W = x0.shape
        u = uniform(noise, x0.new_empty(B, self.holes, 4))
        side = torch.tensor([H, W]).to(x0.device, non_blocking=True)
        size = ((self.low + (self.high - self.low) * u[..., :2]) * side).round().clamp(min=1)  # (B, holes, 2)
        start = (u[..., 2:] * (side - size + 1)).floor()
        rows, columns = (
            (torch.arange(n, device=x0.device) >= start[..., k, None])
            & (torch.arange(n, device=x0.device) < (start + size)[..., k, None])
            for k, n in enumerate((H, W))
        )  # (B, holes, H) and (B, holes, W)
        known = ~(rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)  # (B, 1, H, W)
        return torch.cat([x0 * known, known.to(x0)], dim=1)

    def read(self, picture, image):
        C, H, W = image
        if tuple(picture.shape[1:]) != (C + 1, H, W):
            raise ValueError(
                f"expected pictures of {H}x{W} pixels with {C} channels plus alpha, transparent where they are to be "
                f"filled in; got {'x'.join(map(str, picture.shape[-2:]))} with {picture.shape[1]}"
            )
        known = (picture[:, C:] > 0).to(picture)
        if known.all():
            raise ValueError("the picture is opaque everywhere; make the part to be filled in transparent")
        return torch.cat([picture[:, :C] * known, known], dim=1)


class Paired(Hint):
    """An image that the data have for each image: a smaller one, other bands, a map; its scaling is its own.

    Args:
        size: (K, h, w) of these images; linked from the data.
        scaling: from their raw values to those that the network receives, a `Scaling` or its plain form.
        resize: resize them bilinearly to the size of the images; otherwise each pixel is repeated.
    """

    def __init__(
        self, size: Sequence[int], scaling: Mapping[str, Any] | Scaling | None = None, resize: bool = False
    ) -> None:
        self.size, self.scaling, self.resize = tuple(size), Scaling.of(scaling).plain, resize
        Scaling.of(scaling).check(self.size[0])

    def shape(self, image):
        return (self.size[0], *image[1:]) if self.resize else self.size

    def __call__(self, x0, noise=torch.randn_like):
        raise ValueError("Paired: its images come with the data and cannot be derived from x0")

    def encode(self, raw: Tensor) -> Tensor:
        """Raw images (N, K, h, w), scaled."""
        return Scaling.of(self.scaling).encode(raw)

    def decode(self, hint: Tensor) -> Tensor:
        """The raw values of a hint."""
        return Scaling.of(self.scaling).decode(hint)

    def fit(self, scaled: Tensor, image: Sequence[int]) -> Tensor:
        """The hint (N, K, ...) of scaled images (N, K, h, w) for images (C, H, W)."""
        size = tuple(image[1:])
        if not self.resize or tuple(scaled.shape[-2:]) == size:
            return scaled
        return F.interpolate(scaled, size, mode="bilinear", antialias=True)

    def read(self, picture, image):
        """The hint for a user's raw pictures (N, K, h, w)."""
        dtype = Scaling.of(self.scaling).dtype
        if picture.dtype != DTYPES[dtype] or tuple(picture.shape[1:]) != self.size:
            raise ValueError(f"expected {dtype} {self.size}, got {str(picture.dtype)[6:]} {tuple(picture.shape[1:])}")
        return self.fit(self.encode(picture), image)

    def show(self, hint, image):
        """The hint at the size of the images, (N, K, H, W)."""
        return F.interpolate(hint, tuple(image[1:]))
