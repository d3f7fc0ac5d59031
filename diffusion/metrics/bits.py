"""Likelihood of images under a model: the only figure that does not depend on samples."""

from collections.abc import Mapping

from torch import Tensor

from diffusion.metrics.base import Features, Figure, Metric, Reference, Score, bootstrap


class Bits(Metric):
    """Bits per dimension of test images by the variational bound; its floor is that of training images.

    A training set that is much more likely than the test set has been memorised.

    Args:
        bits: of "test" and "train" images, (N,) each; None without a model.
    """

    key = "nll"
    better = {"nll": "low"}

    def __init__(self, bits: Mapping[str, Tensor] | None = None) -> None:
        self.bits = bits

    def missing(self, samples: Features, reference: Reference) -> str:
        return "" if self.bits else "needs a model: only `diffusion evaluate` measures it"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        return {split: Score.mean(self.bits[split]) for split in ("test", "train")}

    def figures(self, samples: Features, reference: Reference) -> list[Figure]:
        if reason := self.missing(samples, reference):
            raise ValueError(f"{self.key}: {reason}")
        test, train = self.scores(samples, reference.train).values()
        m = len(test.terms)
        return [Figure("nll", test.value, *bootstrap(test), train.value, test.value, m, "low")]
