"""Evaluation of samples against one data set: extractor, cached features of real images, labels to request."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Figure, Metric, Reference, mixed
from diffusion.metrics.extractor import Extractor, fingerprint, to_labels
from diffusion.metrics.pixels import Pixels, Source
from diffusion.support.files import atomic
from diffusion.support.processes import Processes
from diffusion.support.scaling import Scaling

FEW = 10  # images per feature, below which a covariance is poorly estimated


class Evaluator:
    """Figures of samples against a data set.

    All real images are used, without augmentation. Their features are kept in a file that records their provenance, and
    are computed again when images or extractor change.

    Args:
        extractor: computes the features.
        data: name of the data set.
        train, test: its raw images (N, C, H, W), as a tensor or a source, and labels (N,) or contexts (N, K). Images
            of a source are read when they are needed, some at a time.
        cache: folder of the feature files; None keeps none.
        tell: called with the number of images done, after each batch.
        processes: share the images to be described; every process must make the same calls.
        scaling: from raw values to those that the extractor receives.
        labelled: whether the labels or contexts are classes; otherwise the metrics receive none.
    """

    def __init__(
        self,
        extractor: Extractor,
        data: str,
        train: tuple[Tensor | Source, Tensor],
        test: tuple[Tensor | Source, Tensor],
        cache: Path | None = None,
        tell=lambda n: None,
        processes: Processes = Processes(),
        scaling: Scaling = Scaling(),
        labelled: bool = True,
    ) -> None:
        self.extractor, self.data, self.cache, self.processes = extractor, data, cache, processes
        self.scaling, self.labelled = scaling, labelled
        (_, y), (_, its) = train, test
        one, other = (mixed(to_labels(v) if labelled else torch.zeros(len(v))) for v in (y, its))
        self.y = y[one]
        sets = {"train": (self._images(train[0], one), self.y), "test": (self._images(test[0], other), its[other])}
        self.provenance = {split: self._provenance(split, *pair) for split, pair in sets.items()}
        features = {split: self._features(split, *pair, tell) for split, pair in sets.items()}
        text = json.dumps(self.provenance, sort_keys=True)
        self.reference = Reference(**features, hash=hashlib.sha256(text.encode()).hexdigest()[:12])

    def labels(self, n: int) -> Tensor:
        """n labels or contexts to request from a model, in the proportions of the training set in any part."""
        return repeated(self.y, n)

    def classes(self, y: Tensor | None) -> Tensor | None:
        """The classes (N,) of labels or contexts; None of unlabelled data."""
        return to_labels(y) if self.labelled else None

    def describe(self, images: Tensor | Pixels, y: Tensor | None, tell=lambda n: None) -> Features:
        """The features of samples, raw (N, C, H, W), or of a data set's images, for metrics."""
        return self.extractor.describe(
            images, self.classes(y), tell=tell, processes=self.processes, scaling=self.scaling
        )

    def figures(self, samples: Features, metrics: list[Metric]) -> list[Figure]:
        """Every metric's figures of the samples."""
        return [figure for metric in metrics for figure in metric.figures(samples, self.reference)]

    def warnings(self, n: int) -> list[str]:
        """Warnings of too few images for the number of features."""
        width = self.reference.train.features.shape[1]
        sizes = {"samples": n, "training images": len(self.reference.train)}
        return [
            f"{count:,} {what} are few for {width:,} features: the Frechet distance is biased upwards; compare it only "
            f"at equal numbers, use KID, or use at least {FEW * width:,}"
            for what, count in sizes.items()
            if count < FEW * width
        ]

    def _images(self, images: Tensor | Source, order: Tensor) -> Tensor | Pixels:
        return images[order] if isinstance(images, Tensor) else Pixels(images, order, self.scaling)

    def _provenance(self, split: str, images: Tensor | Pixels, y: Tensor) -> dict:
        return {
            "data": self.data,
            "split": split,
            "n": len(images),
            "images": fingerprint(images, y),
            "extractor": self.extractor.name,
            "extractor_hash": self.extractor.hash,
            "augmentation": "none",
            "left_out": 0,
        }

    def _features(self, split: str, images: Tensor | Pixels, y: Tensor, tell) -> Features:
        said = self.provenance[split]
        name = f"{self.data}-{split}-{said['n']}-{said['images']}-{said['extractor_hash']}.pt"
        path = self.cache and self.cache / name
        read = self.processes.agreed(_cached(path) if path and self.processes.first else {})
        if read.get("provenance") == said:
            tell(len(images))
            scaled = self.scaling.encode(images) if isinstance(images, Tensor) else images
            return Features(scaled, read["features"], read["logits"], self.classes(y))
        if isinstance(images, Pixels):
            images, order = images.in_order()
            found = self.describe(images, y[order], tell).pick(order.argsort())
        else:
            found = self.describe(images, y, tell)
        if path and self.processes.first:
            with atomic(path) as temporary:
                torch.save({"provenance": said, "features": found.features, "logits": found.logits}, temporary)
        return found


def repeated(y: Tensor, n: int) -> Tensor:
    """The first n of y (N, ...), repeated cyclically if there are fewer."""
    return y.repeat(-(-n // len(y)), *[1] * (y.ndim - 1))[:n]


def _cached(path: Path) -> dict:
    """The contents of a cache file; empty if it is missing, damaged, or of another program."""
    try:
        read = torch.load(path, weights_only=True)
    except Exception:
        return {}
    return read if isinstance(read, dict) else {}
