"""Does a model copy its training set? Distances to the nearest training image, held against the test set's own."""

import torch

from diffusion.metrics.base import Features, Figure, Metric, Reference, Score, bootstrap
from diffusion.metrics.distances import nearest

NEAR = 0.05  # share of test images that count as near a training image
LIMIT = 0.3  # share of samples as near as those that trips the alert


class Memory(Metric):
    """How near samples are to their nearest training image, in pixels and in features, in units of the test images.

        nearest_* = mean nearest distance of samples / mean nearest distance of test images
        near_* = share of samples nearer to a training image than the nearest 5 % of test images are

    New images like the test images have 1 and 0.05.

    The alert asks for 30 % of the samples as near as the nearest 5 % of unseen images, in pixels and in features both:
    samples are smoother than photographs and so a little nearer to everything, copies are near to one image each.
    After the tests against unseen images of Meehan et al. 2020, arXiv:2004.05675; the limits are ours.
    """

    key = "memory"
    better = {k: "floor" for k in ("nearest_pixels", "nearest_features", "near_pixels", "near_features")}

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        """Plain mean distances."""
        return {
            what: Score.mean(nearest(getattr(images, what), getattr(real, what))[0], images.labels)
            for what in ("pixels", "features")
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
                f"to a training image as the nearest {NEAR:.0%} of the test images are; this model repeats its data"
            )
            found = [f._replace(alert=said) if f.name == "near_pixels" else f for f in found]
        return found
