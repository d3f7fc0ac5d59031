"""What a metric is: features of samples and of real images in; a figure with interval and floor out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffusion.support.specs import concrete, gather, suggest

RESAMPLED = 1000
GROUPS = 4  # of samples that are averaged where the test set is smaller than the number of samples


@dataclass(frozen=True)
class Features:
    """What metrics see of N images, in a mixed order: the first m are a fair choice with all classes' shares."""

    pixels: Tensor  # (N, C, H, W) float32 in [-1, 1], from 8 bits
    features: Tensor  # (N, D) float32, of an extractor
    logits: Tensor  # (N, K) float32, of its classifier
    labels: Tensor | None  # (N,) int64: the class asked for, or the true one; None without labels

    def pick(self, part: slice | Tensor) -> "Features":
        """Some of the images."""
        fields = (self.pixels, self.features, self.logits, self.labels)
        return Features(*(None if v is None else v[part] for v in fields))

    def __len__(self) -> int:
        return len(self.pixels)


class Score(NamedTuple):
    """A number, and terms (M,) whose mean moves as the number does when other images are drawn.

    Where the terms are of images with labels, these are the strata (M,): how many there are of each is not chance.
    """

    value: float
    terms: Tensor
    strata: Tensor | None = None

    @classmethod
    def mean(cls, terms: Tensor, strata: Tensor | None = None) -> "Score":
        """The mean of terms (M,)."""
        terms = terms.double()
        return cls(float(terms.mean()), terms, strata)


class Figure(NamedTuple):
    """A score with its 95 % interval and, beside it, what real images that were never trained on score."""

    name: str
    value: float
    low: float
    high: float
    floor: float  # the test images' score, at m images
    matched: float  # the samples' score at m images, to hold against the floor
    m: int
    better: str  # "low", "high", or "floor": the nearer to it
    alert: str = ""


class Reference:
    """Real images as metrics see them, with what is worth computing once.

    Args:
        train: what samples are held against.
        test: images that no model has seen; they give the floors.
        hash: names these features in every line that is written.
    """

    def __init__(self, train: Features, test: Features, hash: str = "") -> None:
        self.train, self.test, self.hash = train, test, hash
        self.memo: dict = {}

    def once(self, key: tuple, make: Callable):
        """make(), the first time that `key` is asked for."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


class Metric(ABC):
    """One or a few scores of samples against real images. A subclass gives `scores`; nothing else need be edited.

    The floor is the score of the test images, all of them or as many as there are samples. Most scores depend on the
    number of images, so `matched` is that of the samples at the number of the floor (the mean over up to 4 parts).
    """

    key: ClassVar[str]  # its name on the command line
    better: ClassVar[dict[str, str]]  # name of each score -> low, high or floor

    @abstractmethod
    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        """The scores of images against real images, by name."""

    def missing(self, samples: Features, reference: Reference) -> str:
        """Why these samples cannot be measured so, or nothing."""
        return "" if len(samples) > 1 else "needs at least 2 samples"

    def figures(self, samples: Features, reference: Reference) -> list[Figure]:
        """All figures of samples.

        Raises:
            ValueError: they cannot be measured so.
        """
        if reason := self.missing(samples, reference):
            raise ValueError(f"{self.key}: {reason}")
        n, m = len(samples), min(len(samples), len(reference.test))
        found = self.scores(samples, reference.train)
        floors = reference.once((type(self), m), lambda: self.scores(reference.test.pick(slice(m)), reference.train))
        if m == n:
            matched = {k: v.value for k, v in found.items()}
        else:
            parts = [samples.pick(slice(i * m, (i + 1) * m)) for i in range(min(GROUPS, n // m))]
            each = [self.scores(part, reference.train) for part in parts]
            matched = {k: sum(s[k].value for s in each) / len(each) for k in found}
        return [
            Figure(k, s.value, *bootstrap(s), floors[k].value, matched[k], m, self.better[k]) for k, s in found.items()
        ]


def bootstrap(score: Score, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """A bootstrap interval: the value, moved as the mean of its terms moves when they are drawn anew with repeats.

    For a mean this is the percentile bootstrap, within each stratum. For other statistics the terms are influence
    values or jackknife pseudo-values, so that the statistic is never computed on repeated images, which would bias it
    (a covariance of repeats is too small).
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 8, 13, 21.
    """
    terms, generator = score.terms.double().cpu(), torch.Generator().manual_seed(seed)
    strata = torch.zeros(len(terms)) if score.strata is None else score.strata
    draws = torch.zeros(RESAMPLED, dtype=torch.float64)
    for k in strata.unique():
        mine = terms[strata == k]
        index = (torch.randint(len(mine), (len(mine),), generator=generator) for _ in range(RESAMPLED))
        draws += torch.stack([mine[i].sum() for i in index]) / len(terms)
    ends = torch.quantile(draws - terms.mean(), torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2]).double())
    return score.value + float(ends[0]), score.value + float(ends[1])


def mixed(labels: Tensor, seed: int = 0) -> Tensor:
    """An order (N,) of labels (N,) in which each class is spread evenly: any part has all classes in their shares.

    Within a class, at random. Sets of equal shares can be compared without the noise of unequal ones.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for k in labels.unique():
        mine = order[labels[order] == k]
        place[mine] = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / len(mine)
    return order[place[order].argsort(stable=True)]


def known() -> dict[str, type[Metric]]:
    """Every metric by its key."""
    gather("diffusion.metrics")
    return {kind.key: kind for kind in sorted(concrete(Metric), key=lambda kind: kind.__name__)}


def metric(name: str) -> Metric:
    """The metric of a key, a class name, or an import path.

    Raises:
        ValueError: there is none; the message lists them.
    """
    module, _, last = name.rpartition(".")
    kind = getattr(import_module(module), last, None) if module else None
    if isinstance(kind, type) and issubclass(kind, Metric):
        return kind()
    kinds = known()
    for key, kind in kinds.items():
        if name in (key, kind.__name__):
            return kind()
    raise ValueError(f"there is no metric {name!r}{suggest(name, list(kinds))}; there are: {', '.join(kinds)}")
