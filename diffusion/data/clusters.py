"""Clusters of images, which can stand in for labels: k-means.

    minimise  sum_i |x_i - c_l(i)|^2    over k centres c and the assignment l of the images x to them

Centres are seeded by k-means++: each next one is an image, drawn in proportion to its squared distance from the centres
before it. Then each image is assigned to its nearest centre and each centre becomes the mean of its images, in turn, so
that the sum never rises. A generative model that is conditioned on such clusters is better than an unconditional one of
the same images, and needs no labels.

Sources: Lloyd 1982, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28(2); Arthur and Vassilvitskii 2007,
k-means++: the advantages of careful seeding, SODA; as labels: Bao et al. 2022, arXiv:2212.00362.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16  # pixels, of the reduced images that are compared
MOST = 100  # passes over the images
EQUAL = 1e-12  # of the largest squared length: squared distances below it are lost in rounding
NUMBERS = 2**17  # values of images at a time: about what a processor's cache holds in float64


def reduced(images: Tensor, side: int = SIDE) -> Tensor:
    """Images (N, C, H, W) as means of square blocks, the smallest with at most `side` of them along each side."""
    block = math.ceil(max(images.shape[2:]) / side)
    if block == 1:
        return images
    means = [F.avg_pool2d(p.float(), block, ceil_mode=True, count_include_pad=False) for p in parts_of(images)]
    return torch.cat(means)


def kmeans(x: Tensor, k: int, seed: int = 0, most: int = MOST) -> Tensor:
    """The centres (k, ...) of clusters of x, float64, that of the largest cluster first; no cluster is empty.

    Args:
        x: images (N, ...), uint8 or float32.
        k: number of clusters, 2 .. the number of different images.
        seed: of the first centres.
        most: passes over the images at most; fewer if nothing changes any more.
    Raises:
        ValueError: k is out of its range.
    """
    rows, before = x.flatten(1), None
    centres = seeded(rows, k, torch.Generator().manual_seed(seed))
    for _ in range(most):
        found = assigned(rows, centres)
        if found.counts.all():
            kept, counts = centres, found.counts
            if before is not None and torch.equal(found.labels, before):
                break
        before = found.labels
        centres = moved(rows, centres, found)
    return kept[counts.argsort(descending=True, stable=True)].unflatten(1, x.shape[1:])


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre (k, ...) that is nearest to each image of x (N, ...): (N,) int64."""
    return assigned(x.flatten(1), centres.flatten(1)).labels


class Assigned(NamedTuple):
    """Rows (N, D) with their nearest centres: labels (N,), sums (k, D) and counts (k,) of the clusters."""

    labels: Tensor
    sums: Tensor
    counts: Tensor


def assigned(rows: Tensor, centres: Tensor) -> Assigned:
    """Assign each row to its nearest centre, the first of equally near ones; in float64."""
    labels, sums, half = [], torch.zeros_like(centres), centres.square().sum(1) / 2
    for part in parts_of(rows):
        part = part.double()
        label = torch.addmm(half, part, centres.T, alpha=-1).argmin(1)  # of (|x - c|^2 - |x|^2) / 2
        labels.append(label)
        sums.index_add_(0, label, part)
    labels = torch.cat(labels)
    return Assigned(labels, sums, labels.bincount(minlength=len(centres)))


def moved(rows: Tensor, centres: Tensor, found: Assigned) -> Tensor:
    """The means of the clusters; an empty one is given the row farthest from its centre that is not alone there.

    Such a row has a positive distance, or the rows would have fewer different values than there are centres.
    """
    if found.counts.all():
        return found.sums / found.counts[:, None]
    labels, sums, counts = (t.clone() for t in found)
    squared = torch.cat([
        (part - centres[label]).square().sum(1)
        for part, label in zip(parts_of(rows), labels.split(len(parts_of(rows)[0])), strict=True)
    ])  # fmt: skip
    for empty in (counts == 0).nonzero().flatten().tolist():
        far = int(squared.where(counts[labels] > 1, -1.0).argmax())
        row, other = rows[far].double(), int(labels[far])
        sums[other] -= row
        sums[empty] = row
        counts[other] -= 1
        counts[empty] = 1
        labels[far] = empty
    return sums / counts[:, None]


def seeded(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k different rows (k, D) as first centres, by k-means++.

    Raises:
        ValueError: k < 2, or fewer different rows.
    """
    if k < 2:
        raise ValueError(f"clusters: wanted at least 2, got {k}; one cluster says nothing about an image")
    draw = torch.rand(k, dtype=torch.float64, generator=generator)
    chosen = [int(draw[0] * len(rows))]
    squared = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    least = EQUAL * max(float(part.float().square().sum(1).max()) for part in parts_of(rows))
    while len(chosen) < k:
        last = rows[chosen[-1]].float()
        apart = torch.cat([(part.float() - last).square().sum(1) for part in parts_of(rows)]).double()
        squared = torch.minimum(squared, apart.where(apart > least, 0.0))
        total = squared.cumsum(0)
        if not total[-1]:
            raise ValueError(
                f"clusters: wanted {k}, and the {len(rows):,} images have {len(chosen)} different values; "
                f"choose at most {len(chosen)}"
            )
        place = int(torch.searchsorted(total, draw[len(chosen)] * total[-1], right=True))
        chosen.append(place if place < len(rows) else int(squared.argmax()))  # where the product was rounded up
    return rows[chosen].double()


def parts_of(x: Tensor) -> tuple[Tensor, ...]:
    """x (N, ...) in parts of at most `NUMBERS` values, or single rows."""
    return x.split(max(NUMBERS // math.prod(x.shape[1:]), 1))
