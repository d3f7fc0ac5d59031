"""Memorisation: distances to the nearest training image, compared with those of the test set."""

import torch

from diffusion.metrics.base import Features, Figure, Metric, Reference, Score, bootstrap
from diffusion.metrics.distances import nearest

NEAR = 0.05  # share of test images that count as near a training image
LIMIT = 0.3  # share of samples as near as those, above which the alert is raised


class Memory(Metric):
    """The distance of samples to their nearest training image, in pixels and features, relative to the test images.

        nearest_* = mean nearest distance of samples / mean nearest distance of test images
        near_* = share of samples nearer to a training image than the nearest 5 % of test images are

    New images distributed as the test images have 1 and 0.05.

    The alert requires 30 % of the samples to be as near as the nearest 5 % of test images, in both pixels and features:
    samples are smoother than photographs and so slightly nearer to all images, copies are near to one image each.
    After the tests against held-out images of Meehan et al. 2020, arXiv:2004.05675; the limits are our own.
    """

    key = "memory"
    better = {k: "floor" for k in ("nearest_pixels", "nearest_features", "near_pixels", "near_features")}

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        """Plain mean distances."""
        return {
            name: Score.mean(nearest(getattr(images, what), getattr(real, what))[0], images.labels)
            for name, what in (("pixels", "images"), ("features", "features"))
        }

    def figures(self, samples: Features, reference: Reference) -> list[Figure]:
        unseen = reference.once((type(self),), lambda: self.scores(reference.test, reference.train))
        n, m, found = len(samples), len(reference.test), []
        shares = []
        for what, score in self.scores(samples, reference.train).items():
            unit, limit = unseen[what].value, float(torch.quantile(unseen[what].terms[:100_000], NEAR))
            for name, score_, floor in (
                (f"nearest_{what}", Score.mean(score.terms / unit, score.strata), 1.0),
                (f"near_{what}", Score.mean(score.terms < limit, score.strata), NEAR),
            ):
                found.append(Figure(name, score_.value, *bootstrap(score_), floor, score_.value, m, self.better[name]))
            shares.append(found[-1].low if n > 1 else 0.0)
        if min(shares) > LIMIT:
            said = (
                f"copies: {found[1].value:.0%} (pixels) and {found[3].value:.0%} (features) of the samples are as near "
                f"to a training image as the nearest {NEAR:.0%} of the test images are; this model memorises its data"
            )
            found = [f._replace(alert=said) if f.name == "near_pixels" else f for f in found]
        return found
