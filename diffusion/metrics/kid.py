"""The kernel inception distance on any features: unbiased at any number of images."""

import torch
from torch import Tensor

from diffusion.metrics.base import Features, Metric, Score

GROUPS = 20


class KID(Metric):
    """Squared maximum mean discrepancy under k(x, y) = (x y / D + 1)^3, unbiased: 0 on average for equal distributions.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Over all samples and as many training images. Its standard error is the jackknife's over 20 subsets, each without
    a twentieth of both; for equal distributions it overestimates by a factor of about 1.4.
    Source: Binkowski et al. 2018, arXiv:1801.01401, sec. 4; Gretton et al. 2012, JMLR 13, eq. 3; the error: Efron &
    Stein 1981, Annals of Statistics 9(3) 586-596.
    """

    key = "kid"
    better = {"kid": "low"}

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        value, left_out = mmd(images.features, real.features[: max(len(images), 2)])
        B = len(left_out)
        return {"kid": Score(value, B * value - (B - 1) * left_out)}


def mmd(x: Tensor, y: Tensor, groups: int = GROUPS) -> tuple[float, Tensor]:
    """The estimate of features x (N, D), y (M, D), and the estimates that leave out a group of each: float, (groups,).

    Only sums of the kernel over pairs of groups are kept: memory N M / groups^2.
    """
    groups = max(2, min(groups, len(x) // 2, len(y) // 2))  # at least two rows remain
    x, y = x.double(), y.double()
    xs, ys = ([v[g::groups] for g in range(groups)] for v in (x, y))
    nx, ny = (torch.tensor([len(part) for part in parts]) for parts in (xs, ys))
    xx, yy, xy = sums(xs, xs), sums(ys, ys), sums(xs, ys)
    dx, dy = (torch.stack([kernel_of_self(part).sum() for part in parts]).cpu() for parts in (xs, ys))
    total = estimate(xx.sum() - dx.sum(), yy.sum() - dy.sum(), xy.sum(), nx.sum(), ny.sum())

    def less(table: Tensor) -> Tensor:  # the sum without a row and a column
        return table.sum() - table.sum(0) - table.sum(1) + table.diagonal()

    left_out = estimate(
        less(xx) - (dx.sum() - dx), less(yy) - (dy.sum() - dy), less(xy), nx.sum() - nx, ny.sum() - ny
    )  # fmt: skip
    return float(total), left_out


def estimate(xx: Tensor, yy: Tensor, xy: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """The estimate from sums over pairs of different rows."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def sums(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The kernel's sum over each pair of parts."""
    D = xs[0].shape[1]
    return torch.stack([torch.stack([(a @ b.T / D + 1).pow(3).sum() for b in ys]) for a in xs]).cpu()


def kernel_of_self(x: Tensor) -> Tensor:
    """k(x_i, x_i), (N,)."""
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)
