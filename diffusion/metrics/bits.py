"""How likely a model finds images: the one figure that looks at no samples."""

from collections.abc import Callable

from torch import Tensor

from diffusion.metrics.base import Features, Figure, Metric, Reference, Score, interval


class Bits(Metric):
    """Bits a dimension of test images by the variational bound; its floor is that of training images.

    A training set that is much more likely than the test set has been learned by heart.

    Args:
        bits: split -> bits of each of its images (N,); a command that has a model sets it.
    """

    key = "nll"
    better = {"nll": "low"}

    def __init__(self, bits: Callable[[str], Tensor] | None = None) -> None:
        self.bits = bits

    def missing(self, samples: Features, reference: Reference) -> str:
        return "" if self.bits else "needs a model: only `diffusion evaluate` measures it"

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        return {split: Score.mean(self.bits(split)) for split in ("test", "train")}

    def figures(self, samples: Features, reference: Reference) -> list[Figure]:
        if reason := self.missing(samples, reference):
            raise ValueError(f"{self.key}: {reason}")
        test, train = self.scores(samples, reference.train).values()
        m = len(test.terms)
        return [Figure("nll", test.value, *interval(test), train.value, test.value, m, "low")]
