"""The Frechet distance between two sets of features."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Metric, Score


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

    The trace of the root is the sum of the root eigenvalues of the symmetric matrix R cov_b R, R = cov_a^(1/2), so no
    complex square root is needed for a singular covariance.
    Source: Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    values, vectors = torch.linalg.eigh(a.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def influence(real: Gaussian, features: Tensor) -> Tensor:
    """The influence of each row of features (N, D) on their Frechet distance to `real`: (N,), of mean 0.

        2 (mean_b - mean_a) z + z' (1 - T) z - its mean,   z = x - mean_b
        T = R (R cov_b R)^(-1/2) R,   R = cov_a^(1/2)

    1 - T is the derivative by cov_b, T the optimal transport of b to a. The variance of the distance is that of the
    mean of these (the infinitesimal jackknife); its bias, which decreases as 1 / N, is not included.
    Source: Efron 1981, Biometrika 68(3) 589-599, on the distance above.
    """
    own = Gaussian.of(features)
    values, vectors = torch.linalg.eigh(real.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ own.cov @ root)
    inverse = torch.where(values > 1e-9 * values.max(), values.clamp(min=1e-300).rsqrt(), 0)
    turn = torch.eye(len(root), dtype=torch.float64) - root @ ((vectors * inverse) @ vectors.T) @ root
    z = features.double().cpu() - own.mean
    pull = 2 * z @ (own.mean - real.mean) + ((z @ turn) * z).sum(1)
    return pull - pull.mean()


class Frechet(Metric):
    """The Frechet distance of samples to the training images in an extractor's features: quality and variety in one."""

    key = "frechet"
    better = {"frechet": "low"}

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        gaussian = Gaussian.of(real.features)
        value = frechet_distance(gaussian, Gaussian.of(images.features))
        return {"frechet": Score(value, influence(gaussian, images.features), images.labels)}
