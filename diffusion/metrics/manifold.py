"""Precision and recall, density and coverage: quality and variety separately, by balls in feature space."""

import torch

from diffusion.metrics.base import Features, Metric, Reference, Score
from diffusion.metrics.distances import radii, rows


class PrecisionRecall(Metric):
    """Precision: the share of samples in a training image's ball; recall: the share of training images in a sample's.

    A ball extends to the k-th nearest image of the same set, k = 3. Equal numbers of samples and training images are
    compared.
    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1, 2.

    Args:
        k: neighbours, >= 1.
    """

    key = "pr"
    better = {"precision": "high", "recall": "high"}

    def __init__(self, k: int = 3) -> None:
        self.k = k

    def missing(self, samples: Features, reference: Reference) -> str:
        return "" if len(samples) > self.k else f"needs more than {self.k} samples"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        x, y = equal(images, real)
        around_x, around_y = radii(x, self.k), radii(y, self.k)
        precise, recalled = [], torch.zeros(len(y), dtype=torch.bool)
        for part, d in rows(x, y):
            precise.append((d <= around_y).any(1))
            recalled |= (d <= around_x[part, None]).any(0)
        kinds, real_kinds = strata(images, real)
        return {
            "precision": Score.mean(torch.cat(precise), kinds),
            "recall": Score.mean(recalled, real_kinds),
        }


class DensityCoverage(Metric):
    """Density: training images whose ball a sample lies in, over k; coverage: the share of balls with a sample in them.

    A ball extends from a training image to its k-th nearest one, k = 5, so outliers among the samples have no effect.
    Density exceeds 1 if samples concentrate in dense regions.
    Source: Naeem et al. 2020, arXiv:2002.09797, eq. 3, 4.

    Args:
        k: neighbours, >= 1.
    """

    key = "dc"
    better = {"density": "high", "coverage": "high"}

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def missing(self, samples: Features, reference: Reference) -> str:
        return "" if len(samples) > self.k else f"needs more than {self.k} samples"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        x, y = equal(images, real)
        around = radii(y, self.k)
        density, covered = [], torch.zeros(len(y), dtype=torch.bool)
        for _, d in rows(x, y):
            density.append((d <= around).sum(1) / self.k)
            covered |= (d <= around).any(0)
        kinds, real_kinds = strata(images, real)
        return {"density": Score.mean(torch.cat(density), kinds), "coverage": Score.mean(covered, real_kinds)}


def equal(images: Features, real: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Equal numbers of both, as the radius of a ball depends on how sparse its set is."""
    n = min(len(images), len(real))
    return images.features[:n], real.features[:n]


def strata(images: Features, real: Features) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The labels of the images that `equal` takes."""
    n = min(len(images), len(real))
    return tuple(None if v.labels is None else v.labels[:n] for v in (images, real))
