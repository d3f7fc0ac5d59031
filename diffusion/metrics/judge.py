"""An independent judge of generated digits: trained on real digits, with results in units of real digits."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.metrics.features import train_classifier
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.support.scaling import Scaling


class Labelled(NamedTuple):
    """Images x (N, 1, 8, 8) in [-1, 1] and their classes y (N,)."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, images: Tensor, y: Tensor) -> "Labelled":
        """The labelled images of uint8 images."""
        return cls(Scaling().encode(images), y)


class Judge:
    """A classifier of the training digits that takes no part in generation, and the Frechet distance of its features.

    Args:
        train: digits that the classifier and the generator are trained on.
        test: digits that neither is trained on; their distance to the training digits is the floor.
        epochs: of the classifier's training.
    """

    def __init__(self, train: Labelled, test: Labelled, epochs: int = 30) -> None:
        self.train, self.test = train, test
        self.net = train_classifier(*train, epochs)
        self.width = self.net.width  # features D
        self.real = Gaussian.of(self.net.features(train.x))
        self.floor = self.distance(self.net.features(test.x))
        self.accuracy = float(self.agrees(*test).float().mean())

    def agrees(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each image (N, 1, 8, 8) is classified as y (N,): (N,) bool."""
        return self.net(x).argmax(1) == y

    def distance(self, features: Tensor) -> float:
        """The Frechet distance of features (N, D) to those of the training digits."""
        return frechet_distance(self.real, Gaussian.of(features))

    def error(self, features: Tensor, groups: int = 20) -> float:
        """The standard deviation of `distance` over sets of N images, by the jackknife over groups.

            error^2 = (groups - 1) / groups sum_g (d_g - mean d)^2

        Overestimates by a factor of 1.2 to 1.5; the bootstrap, by 2, as repeats make covariances singular.
        Source: Efron & Stein 1981, Annals of Statistics 9(3) 586-596, with groups for single images.
        """
        group = torch.arange(len(features)) * groups // len(features)  # contiguous: equal class counts in all
        d = torch.tensor([self.distance(features[group != g]) for g in range(groups)], dtype=torch.float64)
        return float(((groups - 1) / groups * (d - d.mean()).square().sum()).sqrt())

    def spread(self, x: Tensor, y: Tensor) -> Tensor:
        """Each class's mean distance between two images over that of the training digits: (classes,)."""
        kinds = range(self.net.num_classes)
        return torch.tensor([_spread(x[y == k]) / _spread(self.train.x[self.train.y == k]) for k in kinds])

    def nearness(self, x: Tensor) -> float:
        """The mean distance to the nearest training digit over that of the test digits; far below 1 is copying."""
        return float(_nearest(x, self.train.x).mean() / _nearest(self.test.x, self.train.x).mean())


def _spread(x: Tensor) -> float:
    return float(torch.pdist(x.flatten(1)).mean())


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(x.flatten(1), others.flatten(1)).min(1).values
