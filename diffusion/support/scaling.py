"""Scaling: raw values of images, as the data hold them, to and from the values that a model works on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}  # that images can have
WORDS = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}  # the same in numpy
LAST = 4  # most channels of images whose channels come last, (N, H, W, C), unless a layout is given


@dataclass(frozen=True)
class Scaling:
    """An affine map, per channel, from raw values to x_0.

        x_0 = (raw - shift) / scale        uint8: raw / 127.5 - 1

    8-bit images are scaled to [-1, 1], 16-bit images by their measured range to [-1, 1]; float images to mean 0 and
    standard deviation 0.5 per channel, without a limit. The default is that of 8-bit images.

    Args:
        dtype: of raw values: uint8, uint16 or float32.
        shift: one number for all channels, or one per channel.
        scale: positive; as many numbers as `shift`.
        bounded: whether x_0 lies in [-1, 1], so that predictions may be clamped to it.
    Raises:
        ValueError: an unknown dtype, numbers that do not match or are not finite, or 8-bit images scaled otherwise.
    """

    dtype: str = "uint8"
    shift: tuple[float, ...] = (127.5,)
    scale: tuple[float, ...] = (127.5,)
    bounded: bool = True

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.dtype not in DTYPES:
            raise ValueError(f"Scaling: wanted dtype {', '.join(DTYPES)}, got {self.dtype!r}")
        sound = all(map(math.isfinite, self.shift + self.scale)) and all(s > 0 for s in self.scale)
        if len(self.shift) != len(self.scale) or not self.shift or not sound:
            raise ValueError(
                f"Scaling: wanted finite shift and positive scale of one length, got {self.shift} and {self.scale}"
            )
        if self.dtype == "uint8" and (self.shift, self.scale, self.bounded) != ((127.5,), (127.5,), True):
            raise ValueError("Scaling: 8-bit images are scaled by raw / 127.5 - 1; leave shift and scale out")

    @classmethod
    def of(cls, value: Scaling | Mapping[str, Any] | None) -> Scaling:
        """A scaling from its plain form; None is that of 8-bit images, which files without a scaling are of.

        Raises:
            ValueError: it is not the plain form of a scaling.
        """
        try:
            return value if isinstance(value, Scaling) else cls(**(value or {}))
        except TypeError as error:
            raise ValueError(f"scaling: {error}") from error

    @classmethod
    def measured(
        cls, dtype: str, mean: Sequence[float], std: Sequence[float], low: Sequence[float], high: Sequence[float]
    ) -> Scaling:
        """The scaling of images with these statistics per channel; a channel that is constant is only shifted."""
        if dtype == "uint8":
            return cls()
        if dtype == "uint16":
            bottom, top = min(low), max(high)
            return cls(dtype, ((bottom + top) / 2,), ((top - bottom) / 2 or 1.0,))
        # Rounded to float32: the last digits of a mean depend on the processor that summed it.
        shift, scale = ([float(np.float32(v)) for v in values] for values in (mean, [2 * s or 1.0 for s in std]))
        return cls(dtype, tuple(shift), tuple(scale), bounded=False)

    @property
    def plain(self) -> dict[str, Any]:
        """The scaling in plain types, as a checkpoint holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check(self, channels: int) -> None:
        """Reject images of a number of channels that this scaling is not for.

        Raises:
            ValueError: it has numbers for another number of channels.
        """
        if len(self.shift) not in (1, channels):
            raise ValueError(f"Scaling: it has numbers for {len(self.shift)} channels, and the images have {channels}")

    def encode(self, raw: Tensor) -> Tensor:
        """x_0 (..., C, H, W) float32 of raw values."""
        if self.dtype == "uint8":
            return raw.float() / 127.5 - 1
        shift, scale = constants(self, raw.device)
        return (raw.float() - shift) / scale

    def decode(self, x0: Tensor) -> Tensor:
        """Raw values of x_0 (..., C, H, W), of the data's dtype; integers are clamped and rounded."""
        x0 = x0.float().clamp(-1, 1) if self.bounded else x0.float()
        if self.dtype == "uint8":
            return ((x0 + 1) * 127.5).round().byte()
        shift, scale = constants(self, x0.device)
        raw = x0 * scale + shift
        return raw if self.dtype == "float32" else raw.round().to(torch.int32).to(DTYPES[self.dtype])


@lru_cache(maxsize=32)
def constants(scaling: Scaling, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale as float32 (1 or C, 1, 1) on a device, which they are sent to once."""
    values = torch.tensor([scaling.shift, scaling.scale], dtype=torch.float32, device=device)
    return values[0][:, None, None], values[1][:, None, None]


def arranged(raw: Tensor) -> np.ndarray:
    """Raw images (N, C, H, W) as an array in the layout of files: (N, H, W, C), or (N, C, H, W) for C > 4."""
    return (raw if raw.shape[1] > LAST else raw.permute(0, 2, 3, 1)).contiguous().cpu().numpy()


def channels_first(images: np.ndarray, layout: str = "auto") -> np.ndarray:
    """Images of a file as (N, C, H, W): from (N, H, W), from `layout` HWC or CHW, or by "auto".

    "auto" takes the last axis for the channels if it is at most 4 long or shorter than the first axis after N, and that
    one otherwise.
    """
    if images.ndim == 3:
        return images[:, None]
    auto = images.shape[-1] <= LAST or images.shape[-1] < images.shape[1]
    last = auto if layout == "auto" else layout == "HWC"
    return images.transpose(0, 3, 1, 2) if last else images
