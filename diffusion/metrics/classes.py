"""Metrics by a classifier: whether samples belong to the requested class, to one class each, and vary within it."""

from dataclasses import replace

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Metric, Reference, Score
from diffusion.metrics.distances import rows
from diffusion.metrics.pixels import Pixels

MOST = 1000  # images of a class whose distances to one another are computed


class InceptionScore(Metric):
    """exp(mean KL(p(y | x) || p(y))) under the extractor's classifier: between 1 and the number of classes.

    Named after its formula; with a classifier of the data in place of Inception, published values do not compare.
    Source: Salimans et al. 2016, arXiv:1606.03498, sec. 4.
    """

    key = "is"
    better = {"inception_score": "high"}

    def missing(self, samples: Features, reference: Reference) -> str:
        if not samples.logits.shape[1]:
            return "needs an extractor with classes; this one was trained without labels"
        return super().missing(samples, reference)

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        log_p = images.logits.double().log_softmax(1)
        mean = log_p.exp().mean(0).clamp(min=1e-300).log()
        kl = (log_p.exp() * (log_p - mean)).sum(1)
        value = float(kl.mean().exp())
        # An image's effect on p(y) drops out: the derivative of the mean KL by p(y) is the same for every class.
        return {"inception_score": Score(value, value * kl, images.labels)}


class Consistency(Metric):
    """The share of samples classified as the requested class; for test images, the classifier's accuracy."""

    key = "consistency"
    better = {"consistency": "high"}

    def missing(self, samples: Features, reference: Reference) -> str:
        return unlabelled(samples, reference) or super().missing(samples, reference)

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        return {"consistency": Score.mean(images.logits.argmax(1) == images.labels, images.labels)}


class Diversity(Metric):
    """The mean distance between two samples of a class over that between two training images, averaged over classes.

    In pixels and in features; 1 is as varied as the data, 0 one image per class. Classes of one image are left out.
    Data without classes count as one class, of which the first 1,000 images are compared.
    """

    key = "diversity"
    better = {"diversity_pixels": "floor", "diversity_features": "floor"}

    def missing(self, samples: Features, reference: Reference) -> str:
        if reference.train.labels is None:
            return super().missing(samples, reference)
        if samples.labels is None:
            return "needs samples with labels"
        pairs = any((samples.labels == k).sum() > 1 for k in reference.train.labels.unique())
        return "" if pairs else "needs at least two samples of a class"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        if real.labels is None:
            one, other = (v.pick(slice(MOST)) for v in (images, real))
            images, real = (replace(v, labels=torch.zeros(len(v))) for v in (one, other))
        return {
            f"diversity_{name}": spread(getattr(images, what), images.labels, getattr(real, what), real.labels)
            for name, what in (("pixels", "images"), ("features", "features"))
        }


def spread(x: Tensor | Pixels, kx: Tensor, y: Tensor | Pixels, ky: Tensor, most: int = MOST) -> Score:
    """The ratio of mean pairwise distances within x and within y, class by class, with labels kx, ky.

    Terms: each image's mean distance to the others of its class, counted twice, as each pair has two images.

    Args:
        most: maximum number of images per class of y.
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


def apart(x: Tensor | Pixels) -> Tensor:
    """Mean distance of each row of x (N, ...) to the others, (N,)."""
    return torch.cat([d.sum(1) for _, d in rows(x, x)]) / (len(x) - 1)


def unlabelled(samples: Features, reference: Reference) -> str:
    """The reason why a classifier cannot be compared with labels; empty if it can."""
    if samples.labels is None:
        return "needs samples with labels; this model was trained without"
    kinds = int(reference.train.labels.max()) + 1
    width = samples.logits.shape[1]
    return "" if width == kinds else f"needs a classifier of the data's {kinds} classes; this extractor has {width}"
