"""Handwritten digits of 8x8 pixels, included in the package: real data without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.base import ImageData, Split

TEST = 360  # of 1,797; 1,437 are training images


class Digits(ImageData):
    """1,437 training and 360 test images of 0..9, 8x8, one channel, 36 test images of each class.

    The file holds counts 0..16 (dark pixels in a 4x4 block); they are scaled so that 16 becomes 255.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (CC BY 4.0), the 1,797 test images as shipped by scikit-learn (BSD-3-Clause) in `load_digits`.
    """

    channels, size = 1, 8
    class_names = tuple("0123456789")
    changed_by = ("x_flip", "y_flip", "rotate")  # 6 and 9

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
            counts, labels = file["images"], file["labels"].astype(np.int64)  # (1797,8,8) 0..16, (1797,)
        index = stratified(labels, TEST)[split]
        images = np.rint(counts[index] * (255 / 16)).astype(np.uint8)[:, None]
        return torch.from_numpy(images), torch.from_numpy(labels[index])


def stratified(labels: np.ndarray, test: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A fixed split with test / classes images of each class in the test part, each part in a mixed order.

    Args:
        labels: (N,) int64.
        test: size of the test part, a multiple of the number of classes.
        seed: seed of the permutation that defines the split.
    """
    order = np.random.RandomState(seed).permutation(len(labels))  # RandomState: its stream never changes
    classes = np.unique(labels)
    chosen = np.concatenate([order[labels[order] == c][: test // len(classes)] for c in classes])
    in_test = np.isin(order, chosen)
    return {"train": order[~in_test], "test": order[in_test]}
