"""What is noted of each stored image: hashes, statistics per channel, borders of one colour."""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image

AREAS = (9, 8)  # width, height
BARS = 0.02  # of the range: rows whose values differ by less belong to a bar


class Marks(NamedTuple):
    """Notes on n stored images, as arrays; C channels."""

    digest: np.ndarray  # (n, 32) uint8: sha256 of the stored bytes
    look: np.ndarray  # (n,) uint64: difference hash
    small: np.ndarray  # (n, 72): the mean brightness of 8 x 9 areas, uint8 for bytes, else float32
    mean: np.ndarray  # (n, C) float64
    spread: np.ndarray  # (n, C) float64: sum of squared deviations from the mean
    low: np.ndarray  # (n, C) float64
    high: np.ndarray  # (n, C) float64
    bars: np.ndarray  # (n, 2) float32: fraction of the height, of the width, in bars of one colour


def marks(stored: list[np.ndarray], channels: int) -> Marks:
    """The marks of images (C, H, W)."""
    digest = np.zeros((len(stored), 32), np.uint8)
    for row, image in zip(digest, stored, strict=True):
        row[:] = np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8)
    looks = [look(image) for image in stored]
    numbers = np.array([_statistics(image) for image in stored]).reshape(len(stored), 4, channels)
    return Marks(
        digest,
        np.array([hash for hash, _ in looks], np.uint64),
        np.array([small for _, small in looks]).reshape(len(stored), AREAS[0] * AREAS[1]),
        *(numbers[:, k] for k in range(4)),
        np.array([bars(image) for image in stored], np.float32).reshape(-1, 2),
    )


def _statistics(image: np.ndarray) -> np.ndarray:
    """(4, C): mean, sum of squared deviations, lowest and highest value of each channel; exact sums of integers."""
    flat = image.reshape(len(image), -1)
    n = flat.shape[1]
    if image.dtype.kind == "f":
        flat = flat.astype(np.float64)
        mean = flat.sum(1) / n
        spread = ((flat - mean[:, None]) ** 2).sum(1)
    else:
        flat = flat.astype(np.int64)
        total, squares = flat.sum(1), (flat * flat).sum(1)
        mean = total / n
        spread = (squares * n - total * total) / n  # int64: below 2^63 up to 46,000 x 46,000 of 8 bits
    return np.stack([mean, spread, flat.min(1), flat.max(1)]).astype(np.float64)


def look(image: np.ndarray) -> tuple[int, np.ndarray]:
    """The difference hash, and the mean brightness of 8 x 9 areas (72,).

    A bit of the hash is whether the brightness rises from an area to the one on its right; nearly equal pictures differ
    in few.

    A rise counts from 1 % of the range, so that the noise of a flat background sets no bit.
    """
    if image.dtype == np.uint8 and len(image) in (1, 3):
        grey = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("L")
    else:
        grey = Image.fromarray(image.astype(np.float32).mean(0))
    small = np.asarray(grey.resize(AREAS, Image.Resampling.BOX))
    rise = 0.01 * {"u1": 255, "u2": 65535}.get(image.dtype.str[1:], float(np.ptp(image)))
    return int(np.packbits(np.diff(small.astype(np.float32)) > rise).view(">u8")[0]), small.reshape(-1)


def bars(image: np.ndarray) -> tuple[float, float]:
    """Fractions of the height and of the width that lie in bars of one colour at both ends, as of letterboxing."""
    limit = BARS * (255 if image.dtype == np.uint8 else 65535 if image.dtype == np.uint16 else float(np.ptp(image)))
    return _bars(image, limit), _bars(image.swapaxes(1, 2), limit)


def _bars(image: np.ndarray, limit: float) -> float:
    flat = image.transpose(1, 0, 2)  # (H, C, W)
    ranges = flat.max(2).astype(np.float64) - flat.min(2)
    busy = np.flatnonzero((ranges > limit).any(1))
    if not len(busy):
        return 0.0  # the whole picture is flat
    top, bottom = busy[0], len(flat) - 1 - busy[-1]
    return float(top + bottom) / len(flat) if min(top, bottom) > 0 else 0.0
