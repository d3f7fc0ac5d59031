"""Colour ramps of four tones in the manner of pixel art."""

from __future__ import annotations

import numpy as np


def ramp(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Four tones of a colour from dark to light; dark tones shift to blue, light ones to yellow.

    Args:
        hue: (N,) degrees, any.
        saturation: (N,) in [0, 1].
        value: (N,) in [0, 1].

    Returns:
        (N,4,3) red, green, blue in [0, 1].
    """
    lean = np.array([-18.0, -8.0, 0.0, 8.0]) * np.where(hue[:, None] % 360 > 60, -1, 1)
    h = (hue[:, None] + lean) % 360
    s = (saturation[:, None] * [1.08, 1.06, 1.0, 0.72]).clip(0, 1)
    v = (value[:, None] * [0.55, 0.78, 1.0, 1.18]).clip(0, 1)
    k = (np.array([5.0, 3.0, 1.0]) + h[..., None] / 60) % 6
    return v[..., None] * (1 - s[..., None] * np.minimum(k, 4 - k).clip(0, 1))
