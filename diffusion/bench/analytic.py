"""Data whose noisy marginals are known in closed form, and with them the ideal denoiser: reference solutions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.denoiser import Prediction, predict
from diffusion.noise.level import CLEAN, Level

LOG_2PI = math.log(2 * math.pi)


class Analytic(ABC):
    """Data x_0 with known marginals p_t, the distributions of x_t = alpha x_0 + sigma eps. Callable as a Denoise:

        x_0 = E[x_0 | x_t],    eps = E[eps | x_t] = -sigma grad log p_t(x_t)

    The ideal denoiser is defined wherever sigma > 0, on or off a schedule; alpha = 0 is allowed. Densities exist at
    the clean level too, unless documented otherwise. Results have the dtype and the device of x.
    Source: Tweedie's formula, Efron 2011; Karras et al. 2022, arXiv:2206.00364, app. B.3.
    """

    @abstractmethod
    def __call__(self, x: Tensor, t: Level) -> Prediction:
        """The ideal prediction for x (B, C, H, W) at level t, one for the batch () or one per image (B,)."""

    @abstractmethod
    def log_density(self, x: Tensor, t: Level = CLEAN) -> Tensor:
        """log p_t(x) of each image (B,), in nats."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws of x_0 (n, C, H, W), float64; (n, 1, 1, 1) if the parameters are plain numbers."""

    def score(self, x: Tensor, t: Level) -> Tensor:
        """grad log p_t(x) = -eps / sigma, (B, C, H, W), where sigma > 0."""
        return -self(x, t).eps / t.like(x).sigma


class Quantiles(Analytic):
    """Data with a closed-form probability flow: in one dimension it preserves quantiles, so z identifies a path."""

    @abstractmethod
    def at(self, z: Tensor, t: Level) -> Tensor:
        """The quantiles Phi(z) of p_t: the path of the probability flow with parameter z."""

    @abstractmethod
    def quantile(self, x: Tensor, t: Level) -> Tensor:
        """The z whose path passes through x at level t: the inverse of `at`."""

    def transport(self, x: Tensor, t: Level, s: Level = CLEAN) -> Tensor:
        """x transported by the probability flow from level t to level s."""
        return self.at(self.quantile(x, t), s)


class Map:
    """The exact flow map of data with a closed-form probability flow, as a Denoise that reads `Level.end`.

        x_0 = (sigma_t X - sigma_r x) / D,    X = transport(x, t, r),    D = alpha_r sigma_t - alpha_t sigma_r

    Its prediction recombined at the end r is X. Without an end, or with r = t, it is the ideal denoiser's.
    """

    def __init__(self, data: Quantiles) -> None:
        self.data = data

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        ideal = self.data(x, t)
        if t.end is None:
            return ideal
        r, here = t.end.like(x), t.like(x)
        far = r.alpha * here.sigma - here.alpha * r.sigma
        x0 = (here.sigma * self.data.transport(x, t, t.end) - r.sigma * x) / far
        return predict(x, torch.where(far > 0, x0, ideal.x0), here)


class Gaussian(Quantiles):
    """Independent Gaussian pixels, x_0 ~ N(mean, std^2).

        v = alpha^2 std^2 + sigma^2
        x_0 = mean + alpha std^2 (x - alpha mean) / v,    eps = sigma (x - alpha mean) / v

    The probability flow is affine: x_t = alpha mean + sqrt(v) z with the same z at every level.
    Source: Bishop 2006, eq. 2.113-2.117; the flow: Song et al. 2021, arXiv:2011.13456, eq. 13, solved for this score.

    Args:
        mean: one number, or one per pixel, broadcastable to (C, H, W).
        std: likewise, > 0.
    Raises:
        ValueError: std is not positive.
    """

    def __init__(self, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> None:
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
        if not bool((self.std > 0).all()):
            raise ValueError(f"Gaussian: std must be positive, got {float(self.std.min()):g}")

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        mean, var, t = self._marginal(x, t)
        away = (x - t.alpha * mean) / var
        return Prediction(mean + t.alpha * self.std.to(x) ** 2 * away, t.sigma * away)

    def log_density(self, x: Tensor, t: Level = CLEAN) -> Tensor:
        mean, var, t = self._marginal(x, t)
        return -0.5 * ((x - t.alpha * mean) ** 2 / var + var.log() + LOG_2PI).flatten(1).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        shape = torch.broadcast_shapes(self.mean.shape, self.std.shape) or (1, 1, 1)
        return self.mean + self.std * torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    def at(self, z: Tensor, t: Level) -> Tensor:
        mean, var, t = self._marginal(z, t)
        return t.alpha * mean + var.sqrt() * z

    def quantile(self, x: Tensor, t: Level) -> Tensor:
        mean, var, t = self._marginal(x, t)
        return (x - t.alpha * mean) / var.sqrt()

    def entropy(self, t: Level = CLEAN) -> float:
        """-E[log p_t(x_t)] of an image in nats, over the pixels of mean and std (one for plain numbers)."""
        var = t.alpha**2 * self.std**2 + t.sigma**2
        return float((0.5 * (var.log() + LOG_2PI + 1) + 0 * self.mean).sum())

    def _marginal(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor, Level]:
        t = t.like(x)
        return self.mean.to(x), t.alpha**2 * self.std.to(x) ** 2 + t.sigma**2, t


class Mixture(Quantiles):
    """A mixture of Gaussians with independent pixels: component k with probability w_k is N(mean_k, std_k^2).

        r_k = w_k N(x; alpha mean_k, v_k) / sum_j ...,    v_k = alpha^2 std_k^2 + sigma^2
        x_0 = sum_k r_k (mean_k + alpha std_k^2 (x - alpha mean_k) / v_k)

    Not affine in x, so it reveals errors that Gaussian data hide. `at` and `quantile` support images of one pixel: the
    flow of more has no closed form.
    Source: Bishop 2006, eq. 2.113-2.117 for each component, and 9.13 for r.

    Args:
        means: (K,) numbers, or (K, C, H, W).
        stds: one number, K numbers, or (K, C, H, W); > 0.
        weights: (K,) probabilities up to a factor; equal by default.
    Raises:
        ValueError: a std or weight is not positive, or the number of weights is not K.
    """

    def __init__(
        self, means: Tensor | Sequence[float], stds: Tensor | Sequence[float] | float, weights: Sequence[float] = ()
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        K = len(self.means)
        if stds.ndim == 1:  # one per component, along the first dimension
            stds = stds.reshape(-1, *(1,) * (self.means.ndim - 1))
        self.stds = stds.expand_as(self.means)
        self.weights = torch.as_tensor(weights or [1.0] * K, dtype=torch.float64)
        if len(self.weights) != K or not bool((self.weights > 0).all()) or not bool((self.stds > 0).all()):
            raise ValueError(f"Mixture: expected {K} positive weights and positive stds, got {weights} and {stds}")
        self.weights = self.weights / self.weights.sum()

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        away, std, var, mean, t = self._components(x, t)
        share = self._log_joint(away, var).softmax(1)
        share = share.reshape(*share.shape, *(1,) * (x.ndim - 1))  # (B, K, 1, 1, 1)
        away = away / var
        return Prediction((share * (mean + t.alpha * std**2 * away)).sum(1), (share * t.sigma * away).sum(1))

    def log_density(self, x: Tensor, t: Level = CLEAN) -> Tensor:
        away, _, var, *_ = self._components(x, t)
        return self._log_joint(away, var).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        mean, std = (v[k] if v.ndim > 1 else v[k].reshape(n, 1, 1, 1) for v in (self.means, self.stds))
        return mean + std * torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    def at(self, z: Tensor, t: Level) -> Tensor:
        _, _, var, mean, t = self._components(z, t)
        ends = t.alpha * mean + var.sqrt() * z[:, None]  # the quantiles of each component alone
        low, high = ends.min(1).values, ends.max(1).values
        for _ in range(60):
            middle = (low + high) / 2
            short = self._cdf(middle, t) < torch.special.ndtr(z)
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return (low + high) / 2

    def quantile(self, x: Tensor, t: Level) -> Tensor:
        return torch.special.ndtri(self._cdf(x, t))

    def _cdf(self, x: Tensor, t: Level) -> Tensor:
        if x[0].numel() != 1:
            raise ValueError(f"Mixture: the probability flow is known for one pixel only, got {x[0].numel()}")
        away, _, var, *_ = self._components(x, t)
        weights = self.weights.to(x).reshape(-1, *(1,) * (x.ndim - 1))
        return (weights * torch.special.ndtr(away / var.sqrt())).sum(1)

    def _log_joint(self, away: Tensor, var: Tensor) -> Tensor:
        """log w_k + log N(x; alpha mean_k, v_k), (B, K)."""
        return self.weights.to(away).log() - 0.5 * (away**2 / var + var.log() + LOG_2PI).flatten(2).sum(2)

    def _components(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor, Tensor, Tensor, Level]:
        """x - alpha mean, std, v and mean with components along the second dimension, (B, K, C, H, W)."""
        t = t.like(x[:, None])
        mean, std = ((v if v.ndim > 1 else v.reshape(-1, *(1,) * (x.ndim - 1))).to(x) for v in (self.means, self.stds))
        return x[:, None] - t.alpha * mean, std, t.alpha**2 * std**2 + t.sigma**2, mean, t


class Empirical(Analytic):
    """A data set itself, each image equally likely: the optimum of a network of unlimited capacity.

        r_k = softmax_k(-|x - alpha y_k|^2 / (2 sigma^2)),    x_0 = sum_k r_k y_k

    Walks end at images of the set. No density at the clean level, which consists of points.
    Source: Karras et al. 2022, arXiv:2206.00364, app. B.3, eq. 57; Vincent 2011.

    Args:
        images: (N, C, H, W); stored in float64.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.double()

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        x0 = (self._log_kernel(x, t).softmax(1) @ self.images.to(x).flatten(1)).reshape(x.shape)
        t = t.like(x)
        return Prediction(x0, (x - t.alpha * x0) / t.sigma)

    def log_density(self, x: Tensor, t: Level = CLEAN) -> Tensor:
        if not bool((t.sigma > 0).all()):
            raise ValueError("Empirical: a set of points has no density; use a level with sigma > 0")
        norm = x[0].numel() * (t.sigma.log() + LOG_2PI / 2) + math.log(len(self.images))
        return self._log_kernel(x, t).logsumexp(1) - norm.to(x).flatten()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.images[torch.randint(len(self.images), (n,), generator=generator)]

    def _log_kernel(self, x: Tensor, t: Level) -> Tensor:
        """-|x - alpha y_k|^2 / (2 sigma^2), (B, N); without a matrix product, which would lose precision."""
        flat = x.flatten(1)
        t = t.like(flat)
        if t.t.ndim == 0:
            away = torch.cdist(
                flat, t.alpha * self.images.to(x).flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
            )
        else:
            away = (flat[:, None] - t.alpha[:, None] * self.images.to(x).flatten(1)).norm(dim=2)
        return -0.5 * (away / t.sigma) ** 2
