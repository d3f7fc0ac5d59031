"""Noise on a plain background: how far its pixels are from white, or from black."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffusion.metrics.base import Features, Metric, Reference, Score
from diffusion.metrics.pixels import Pixels

REACH = 40  # of 255: the distance from white or black within which a pixel may belong to the background
VISIBLE = 8  # of 255
BATCH = 1000
MOST = 1000  # training images whose border tells white from black


class Background(Metric):
    """The deviation of background pixels from white or black, in grey levels of 0 .. 255.

        background = mean over background pixels and channels of |v - plain|
        background_visible = share of these values above 8
        background_specks = pixels per image that are no background, with eight neighbours that are

    A pixel belongs to the background if all of its channels are within 40 of plain, and a path of such pixels, from one
    to one of its four neighbours, leads to the border of the image. Plain is 255 or 0, whichever is nearer to more of
    the border pixels of the training images; at least half of these must be within 40. A pixel that deviates by more
    than 40 is no background, so speckle of that size is counted by `background_specks` alone.
    """

    key = "background"
    better = {"background": "floor", "background_visible": "floor", "background_specks": "floor"}

    def missing(self, samples: Features, reference: Reference) -> str:
        if plain(reference.train.pick(slice(MOST)).pixels) is None:
            return "needs images on a plain background, white or black"
        return super().missing(samples, reference)

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        found = measured(images.images, plain(real.pick(slice(MOST)).pixels))
        return {
            "background": ratio(found.deviation, found.values, images.labels),
            "background_visible": ratio(found.visible, found.values, images.labels),
            "background_specks": Score.mean(found.specks, images.labels),
        }


class Measured(NamedTuple):
    """Sums over the background of each image, (N,) float64: |v - plain|, values above 8, all; isolated pixels."""

    deviation: Tensor
    visible: Tensor
    values: Tensor
    specks: Tensor


def grey(x: Tensor) -> Tensor:
    """x_0 in [-1, 1] as grey levels 0 .. 255."""
    return (x.double() + 1) * 127.5


def plain(x: Tensor) -> int | None:
    """255 or 0, whichever is within 40 of more border pixels of x_0 (N, C, H, W); None if that is less than half."""
    v = grey(x)
    edge = torch.ones(v.shape[-2:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    share = {level: float(close(v, level)[:, edge].double().mean()) for level in (255, 0)}
    level = max(share, key=share.get)
    return level if share[level] >= 0.5 else None


def close(v: Tensor, level: int) -> Tensor:
    """The pixels (N, H, W) of grey levels v (N, C, H, W) whose channels are all within 40 of a level."""
    return ((v - level).abs() <= REACH + 1e-4).all(1)  # float32 of x_0 is exact to 1e-5 grey levels


def background(v: Tensor, level: int) -> Tensor:
    """The pixels (N, H, W) of grey levels v (N, C, H, W) that are joined with the border by pixels near a level."""
    near = close(v, level)
    found = near.clone()
    found[:, 1:-1, 1:-1] = False
    while True:
        more = found.clone()
        more[:, 1:] |= found[:, :-1]
        more[:, :-1] |= found[:, 1:]
        more[:, :, 1:] |= found[:, :, :-1]
        more[:, :, :-1] |= found[:, :, 1:]
        more &= near
        if torch.equal(more, found):
            return found
        found = more


def specks(found: Tensor) -> Tensor:
    """The pixels (N, H, W) outside a background whose eight neighbours are in it; none on the border."""
    H, W = found.shape[1:]
    around = pad(found, (1, 1, 1, 1))
    parts = [around[:, i : i + H, j : j + W] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return torch.stack(parts).all(0) & ~found


def measured(images: Tensor | Pixels, level: int) -> Measured:
    """The background of images x_0 (N, C, H, W)."""
    parts = []
    for x in images.split(BATCH):
        v = grey(x.cpu())
        found = background(v, level)
        off = (v - level).abs() * found[:, None]
        sums = (off.sum((1, 2, 3)), (off > VISIBLE + 1e-4).sum((1, 2, 3)), found.sum((1, 2)) * v.shape[1])
        parts.append(torch.stack([n.double() for n in (*sums, specks(found).sum((1, 2)))]))
    return Measured(*torch.cat(parts, 1))


def ratio(sums: Tensor, counts: Tensor, strata: Tensor | None) -> Score:
    """The sum of sums (N,) over that of counts (N,), with the effect of each image on it; 0 without any count."""
    whole = counts.sum()
    if not whole:
        return Score(0.0, torch.zeros_like(sums), strata)
    value = sums.sum() / whole
    return Score(float(value), (sums - value * counts) / counts.mean(), strata)
