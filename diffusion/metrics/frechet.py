"""The Frechet distance between two sets of features."""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Moments of features (N, D), with the unbiased covariance.

        Raises:
            ValueError: fewer than two rows.
        """
        if len(features) < 2:
            raise ValueError(f"Frechet distance: needs at least 2 images, got {len(features)}")
        features = features.double().cpu()
        return cls(features.mean(0), torch.cov(features.T).reshape(features.shape[1], features.shape[1]))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), the squared 2-Wasserstein distance.

    The trace of the root is the sum of the root eigenvalues of R cov_b R, R = cov_a^(1/2), which is symmetric, so
    that no complex square root is needed where a covariance is singular.
    Source: Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    values, vectors = torch.linalg.eigh(a.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)
