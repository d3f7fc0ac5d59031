"""Conversion of model tensors to 8-bit images."""

import numpy as np
from torch import Tensor


def to_uint8(x: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C): (x + 1) / 2 clamped, times 255, rounded.

    Images are not scaled by their own extremes, which would change colours between images.
    """
    x = ((x.detach().float().cpu() + 1) / 2).clamp(0, 1) * 255
    return x.round().byte().permute(0, 2, 3, 1).numpy()
