"""The interface of metrics: features of samples and of real images to figures with an interval and a floor."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffusion.metrics.pixels import Pixels
from diffusion.support.specs import concrete, gather, suggest

RESAMPLED = 1000
GROUPS = 4  # of samples to average over where the test set is smaller than the number of samples


@dataclass(frozen=True)
class Features:
    """The inputs of metrics for N images, in a mixed order: the first m contain all classes in their proportions.

    Those of a data set are not in memory: `images` has a length, a shape and parts, and `split` reads some at a time.
    """

    images: Tensor | Pixels  # (N, C, H, W) float32, scaled, from the values that files hold
    features: Tensor  # (N, D) float32, of an extractor
    logits: Tensor  # (N, K) float32, of its classifier
    labels: Tensor | None  # (N,) int64: the requested or the true class; None without labels

    @property
    def pixels(self) -> Tensor:
        """All images, in memory."""
        return self.images.tensor() if isinstance(self.images, Pixels) else self.images

    def pick(self, part: slice | Tensor) -> "Features":
        """A subset of the images."""
        fields = (self.images, self.features, self.logits, self.labels)
        return Features(*(None if v is None else v[part] for v in fields))

    def __len__(self) -> int:
        return len(self.images)


class Score(NamedTuple):
    """A value, and terms (M,) whose mean varies as the value does when other images are drawn.

    For terms of labelled images, the labels are the strata (M,): the number of images in each is not random.
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
    """A score with its 95 % interval and the score of real images that were not trained on."""

    name: str
    value: float
    low: float
    high: float
    floor: float  # the test images' score, at m images
    matched: float  # the samples' score at m images, comparable with the floor
    m: int
    better: str  # "low", "high", or "floor": the closer to it
    alert: str = ""


class Reference:
    """Features of real images, with a cache of quantities that are computed once.

    Args:
        train: images that samples are compared with.
        test: images that no model was trained on; they give the floors.
        hash: identifies these features in every record.
    """

    def __init__(self, train: Features, test: Features, hash: str = "") -> None:
        self.train, self.test, self.hash = train, test, hash
        self.memo: dict = {}

    def once(self, key: tuple, make: Callable):
        """make(), called only the first time that `key` is requested."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


class Metric(ABC):
    """One or several scores of samples against real images. A subclass implements `scores`; no registration is needed.

    The floor is the score of the test images: of all of them, or of as many as there are samples. Most scores depend
    on the number of images, so `matched` is the samples' score at the floor's number (the mean over up to 4 parts).
    """

    key: ClassVar[str]  # its name on the command line
    better: ClassVar[dict[str, str]]  # name of each score -> low, high or floor

    @abstractmethod
    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        """The scores of images against real images, by name."""

    def missing(self, samples: Features, reference: Reference) -> str:
        """The reason why these samples cannot be measured by this metric; empty if they can."""
        return "" if len(samples) > 1 else "needs at least 2 samples"

    def figures(self, samples: Features, reference: Reference) -> list[Figure]:
        """All figures of samples.

        Raises:
            ValueError: they cannot be measured by this metric.
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
    """A bootstrap interval: the value, shifted as the mean of its terms is when they are resampled with replacement.

    For a mean this is the percentile bootstrap, within each stratum. For other statistics the terms are influence
    values or jackknife pseudo-values, so that the statistic is not computed on repeated images, which would bias it
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
    """An order (N,) of labels (N,) that spreads each class evenly: any part has all classes in their proportions.

    The order within a class is random. Sets of equal proportions are compared without the noise of unequal ones.
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
    """The metric with the given key, class name, or import path.

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
