"""What a classifier says of samples: are they of the class asked for, of one class each, and varied within it."""

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Metric, Reference, Score
from diffusion.metrics.distances import rows


class InceptionScore(Metric):
    """exp(mean KL(p(y | x) || p(y))) under the extractor's classifier: between 1 and the number of classes.

    Called so for its formula; with a classifier of the data in place of Inception it compares with nothing published.
    Source: Salimans et al. 2016, arXiv:1606.03498, sec. 4.
    """

    key = "is"
    better = {"inception_score": "high"}

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        log_p = images.logits.double().log_softmax(1)
        mean = log_p.exp().mean(0).clamp(min=1e-300).log()
        kl = (log_p.exp() * (log_p - mean)).sum(1)
        value = float(kl.mean().exp())
        # What an image changes in p(y) drops out: the derivative of mean KL by p(y) is the same for every class.
        return {"inception_score": Score(value, value * kl, images.labels)}


class Consistency(Metric):
    """The share of samples that the classifier sees as the class asked for; that of test images is its accuracy."""

    key = "consistency"
    better = {"consistency": "high"}

    def missing(self, samples: Features, reference: Reference) -> str:
        return unlabelled(samples, reference) or super().missing(samples, reference)

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        return {"consistency": Score.mean(images.logits.argmax(1) == images.labels, images.labels)}


class Diversity(Metric):
    """The mean distance of two samples of a class over that of two training images of it, mean over classes.

    In pixels and in features; 1 is as varied as the data, 0 one picture a class. Classes of one image are left out.
    """

    key = "diversity"
    better = {"diversity_pixels": "floor", "diversity_features": "floor"}

    def missing(self, samples: Features, reference: Reference) -> str:
        if samples.labels is None:
            return "needs samples with labels"
        pairs = any((samples.labels == k).sum() > 1 for k in reference.train.labels.unique())
        return "" if pairs else "needs two samples of a class"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        return {
            f"diversity_{what}": spread(getattr(images, what), images.labels, getattr(real, what), real.labels)
            for what in ("pixels", "features")
        }


def spread(x: Tensor, kx: Tensor, y: Tensor, ky: Tensor, most: int = 1000) -> Score:
    """The ratio, class by class, of mean distances between two of x and two of y with labels kx, ky.

    Its terms: each image's mean distance to the others of its class, counted twice (it is in every second pair).

    Args:
        most: images of a class of y that are looked at.
    """
    parts = []
    for k in ky.unique():
        mine, real = x[kx == k], y[ky == k][:most]
        if len(mine) > 1 and len(real) > 1 and (unit := float(apart(real).mean())) > 0:
            parts.append(apart(mine) / unit)
    value = sum(float(p.mean()) for p in parts) / len(parts)
    n = sum(map(len, parts))
    terms = torch.cat([n / (len(parts) * len(p)) * (2 * p - p.mean()) for p in parts])
    return Score(value, terms, torch.cat([torch.full((len(p),), k) for k, p in enumerate(parts)]))


def apart(x: Tensor) -> Tensor:
    """The mean distance of each row of x (N, ...) to the others: (N,)."""
    return torch.cat([d.sum(1) for _, d in rows(x, x)]) / (len(x) - 1)


def unlabelled(samples: Features, reference: Reference) -> str:
    """Why a classifier's answer cannot be held against labels, or nothing."""
    if samples.labels is None:
        return "needs samples with labels; this model was trained without"
    kinds = int(reference.train.labels.max()) + 1
    width = samples.logits.shape[1]
    return "" if width == kinds else f"needs a classifier of the data's {kinds} classes; this extractor knows {width}"
