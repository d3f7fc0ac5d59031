"""The sliced Wasserstein distance of image patches, at each level of detail."""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.metrics.base import Features, Metric, Score
from diffusion.metrics.pixels import Pixels
from diffusion.noise.draws import seed_of

SIDE = 7  # pixels of a patch
BATCH = 256  # images at a time
COLUMNS = 16  # directions at a time
KERNEL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


class SWD(Metric):
    """The sliced Wasserstein distance between patches of samples and of training images, times 1,000.

    Each level of a Laplacian pyramid gives 7x7 patches at random positions, whose channels are shifted and divided by
    the training patches' mean and standard deviation. The distance at a level is the mean, over random directions, of
    the Wasserstein distance between the projections of both sets. `swd` is the mean over the levels, `swd_fine` the
    distance in the finest details and `swd_coarse` in the smallest image. Over all samples and as many training images.

    Source: Karras et al. 2018, arXiv:1710.10196, sec. 5, with three deviations. The paper scales each set by its own
    statistics, which hides differences in brightness and contrast. Its last level is 16x16; here it is the last one
    that a patch fits in, since the images are smaller. It has 128 patches per image and 512 directions.

    Args:
        patches: per image and level, >= 1; fewer where an image has fewer positions.
        directions: number of projections, >= 1.
        seed: of the positions and the directions.
    """

    key = "swd"
    better = {"swd": "low", "swd_fine": "low", "swd_coarse": "low"}

    def __init__(self, patches: int = 16, directions: int = 128, seed: int = 0) -> None:
        self.patches, self.directions, self.seed = patches, directions, seed

    def scores(self, images: Features, real: Features) -> dict[str, Score]:
        sets = self.described(images.images), self.described(real.images[: max(len(images), 2)])
        found = [self.distance(x, y) for x, y in zip(*sets, strict=True)]  # level by level
        values, terms = (1000 * torch.stack(v) for v in zip(*found, strict=True))
        chosen = {"swd": (values.mean(), terms.mean(0)), "swd_fine": (values[0], terms[0])}
        chosen["swd_coarse"] = values[-1], terms[-1]
        return {name: Score(float(value), term, images.labels) for name, (value, term) in chosen.items()}

    def described(self, x: Tensor | Pixels) -> list[Tensor]:
        """Patches (N, P, h, w, C) of images (N, C, H, W) at each level."""
        found = []
        for k, part in enumerate(x.split(BATCH)):
            generator = torch.Generator().manual_seed(seed_of(self.seed, k))
            found.append([cut(level, self.patches, generator) for level in pyramid(part)])
        return [torch.cat(level) for level in zip(*found, strict=True)]

    def distance(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of patches (N, P, h, w, C) to those of real images (M, P, h, w, C), and its terms (N,)."""
        mean, std = y.mean((0, 1, 2, 3)), y.std((0, 1, 2, 3), correction=0)
        std = torch.where(std > 0, std, 1.0)
        a, b = (((v - mean) / std).flatten(2).flatten(0, 1) for v in (x, y))
        rays = torch.randn(a.shape[1], self.directions, generator=torch.Generator().manual_seed(self.seed))
        value, terms = torch.zeros((), dtype=torch.float64), torch.zeros(len(a), dtype=torch.float64)
        for part in (rays / rays.norm(dim=0)).split(COLUMNS, dim=1):
            each, pulls = wasserstein(a @ part, b @ part)
            value, terms = value + each.sum() / self.directions, terms + pulls.sum(1) / self.directions
        return value, terms.view(len(x), -1).mean(1)


def wasserstein(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The 1-Wasserstein distances between the columns of a (A, K) and b (B, K), and their influence: (K,), (A, K).

        W = integral |F - G|,   influence(x) = integral from x of sign(F - G), minus its mean over a

    F and G are the distribution functions of a and b; the influence is the derivative by the weight of x among a.
    Source: Villani 2003, Topics in Optimal Transportation, eq. 2.48.
    """
    A, B = len(a), len(b)
    values, order = torch.cat([a, b]).double().sort(dim=0)
    steps = torch.where(order < A, B, -A).cumsum(0)[:-1]  # A B (F - G), in integers: exactly 0 where they are equal
    gaps = values.diff(dim=0)
    beyond = (steps.sign() * gaps).flip(0).cumsum(0).flip(0)
    beyond = torch.cat([beyond, beyond[:1] * 0])
    pulls = torch.empty_like(values).scatter_(0, order, beyond)[:A]
    return (steps.abs() * gaps).sum(0) / (A * B), pulls - pulls.mean(0)


def cut(x: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Patches (N, P, h, w, C) at random positions of images (N, C, H, W); at every position if there are few."""
    (N, _, H, W), (h, w) = x.shape, (min(SIDE, n) for n in x.shape[-2:])
    down, right = H - h + 1, W - w + 1
    if down * right > number:
        place = torch.randint(down * right, (N, number), generator=generator)
    else:
        place = torch.arange(down * right).expand(N, -1)
    rows = (place // right)[..., None, None] + torch.arange(h)[:, None]  # (N, P, h, 1)
    columns = (place % right)[..., None, None] + torch.arange(w)  # (N, P, 1, w)
    return x[torch.arange(N)[:, None, None, None], :, rows, columns]


def pyramid(x: Tensor) -> list[Tensor]:
    """The Laplacian pyramid of images (N, C, H, W): details of each size, and the smallest image that a patch fits in.

    Source: Burt & Adelson 1983, IEEE Trans. Communications 31(4) 532-540.
    """
    levels = []
    while min((n + 1) // 2 for n in x.shape[-2:]) >= SIDE:
        small = blurred(x)[..., ::2, ::2]
        wide = x.new_zeros(*small.shape[:2], 2 * small.shape[2], 2 * small.shape[3])
        wide[..., ::2, ::2] = 4 * small
        levels.append(x - blurred(wide)[..., : x.shape[2], : x.shape[3]])
        x = small
    return [*levels, x]


def blurred(x: Tensor) -> Tensor:
    """Images (N, C, H, W), H, W >= 3, filtered by the binomial kernel of 5x5 pixels; the border is a mirror."""
    kernel = KERNEL.to(x)
    rows = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(rows, kernel.view(1, 1, 5, 1)), kernel.view(1, 1, 1, 5)).view_as(x)
