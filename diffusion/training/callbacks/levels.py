"""The error of a denoiser by noise level, in a unit common to all targets, weights and schedules."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise.draws import FixedDraws
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times

END, WIDTH = 10, 2  # fixed bins of log-SNR make runs comparable; the outer two are open
BINS = 2 * END // WIDTH
FEW = 4  # a bin with fewer images is nan: its mean and standard error would be meaningless
KNOTS = torch.linspace(-20, 30, 1001, dtype=torch.float64)  # log-SNRs at which the linear error is tabulated
TAILS = torch.tensor([1e-5, 1e-4, 1 - 1e-4, 1 - 1e-5], dtype=torch.float64)


def _name(k: int) -> str:
    low = k * WIDTH - END
    ends = {0: f"below_{low + WIDTH}", BINS - 1: f"above_{low}"}
    return f"{k}_log_snr_{ends.get(k, f'{low}_to_{low + WIDTH}')}"


NAMES = [_name(k) for k in range(BINS)]  # 0 is the noisiest


def bins(log_snr: Tensor) -> Tensor:
    """The bin 0 .. BINS - 1 of each log-SNR; 0 is the noisiest, -inf included."""
    return ((log_snr.clamp(-END, END) + END) / WIDTH).floor().long().clamp(0, BINS - 1)


class Spectrum:
    """Mean and variance of a data set at each frequency F x_0, and the best linear denoiser of each frequency:

        F x_0_hat = mean + alpha var / (alpha^2 var + sigma^2) (F x - alpha mean)
        E |x_0 - x_0_hat|^2 = mean_k var_k / (snr var_k + 1)

    Exact for data of any distribution, since only second moments enter. A network that learns more than the average
    power of the images has a smaller error. The linear denoiser's error is the unit of errors: a target is linear in
    (x_0, eps) and x is given, so a ratio of two errors is the same in x_0, in eps and in the network's output.
    Source: Wiener 1949; Gonzalez & Woods 2018, sec. 5.8.

    Args:
        images: (N, C, H, W) in [-1, 1].
    """

    def __init__(self, images: Tensor) -> None:
        f = torch.fft.fft2(images.float(), norm="ortho")
        self.mean = f.mean(0)  # (C, H, W)
        self.power = f.abs().square().mean(0)
        self.var = (self.power - self.mean.abs().square()).clamp(min=1e-6)
        var = self.var.double().flatten()
        self._table = torch.stack([(var / (snr * var + 1)).mean() for snr in KNOTS.exp()]).log()

    def error(self, log_snr: Tensor) -> Tensor:
        """Expected squared error of x_0 per pixel at each log-SNR (B,), float64; interpolation error below 1e-4."""
        at = (log_snr.double().clamp(KNOTS[0], KNOTS[-1]) - KNOTS[0]) / (KNOTS[1] - KNOTS[0])
        k = at.long().clamp(max=len(KNOTS) - 2)
        return torch.lerp(self._table[k], self._table[k + 1], at - k).exp()

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """The linear estimate x_0_hat for x (B, C, H, W)."""
        gain = t.alpha * self.var / (t.alpha**2 * self.var + t.sigma**2)
        f = torch.fft.fft2(x, norm="ortho")
        return torch.fft.ifft2(self.mean + gain * (f - t.alpha * self.mean), norm="ortho").real

    def std(self, t: Level) -> Tensor:
        """Root mean square of x at a scalar level, per channel and frequency (C, H, W)."""
        return (t.alpha**2 * self.power + t.sigma**2).sqrt()


def ideal(x: Tensor, t: Level, images: Tensor, mine: Tensor | None = None) -> Tensor:
    """E[x_0 | x] over a set of images: the optimum on that set, which a network of unlimited capacity learns.

    `analytic.Empirical` as a matrix product: many images, each at its own level, in float32.
    Source: Karras et al. 2022, arXiv:2206.00364, app. B.3, eq. 57.

    Args:
        mine: (B, N) bool, the images that each x may come from: those of its label, for a conditional network.
    """
    flat, alpha, sigma = images.flatten(1), t.alpha.flatten(1), t.sigma.flatten(1)
    kernel = (alpha * (x.flatten(1) @ flat.T) - alpha**2 / 2 * flat.square().sum(1)) / sigma**2  # up to a constant
    if mine is not None:
        kernel = kernel.masked_fill(~mine, -math.inf)
    return (kernel.softmax(1) @ flat).reshape(x.shape)


def spread(schedule: Schedule, u: Tensor) -> Tensor:
    """Times for u (n,) in [0, 1), uniform in log-SNR over the part of the schedule between -END and END."""
    ends = schedule.level(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).log_snr.clamp(-END, END)
    t = schedule.time(torch.lerp(ends[0], ends[1], u)).clamp(schedule.t_min, 1)
    return (t * schedule.T).round().clamp(1, schedule.T) / schedule.T if schedule.T else t


class Ratio(NamedTuple):
    """A ratio per bin (nan for too few images), its standard error, and the mean over the bins."""

    value: Tensor
    error: Tensor

    @property
    def mean(self) -> float:
        return float(self.value.nanmean())

    @property
    def margin(self) -> float:
        """The standard error of the mean."""
        known = ~self.error.isnan()
        return float(self.error[known].square().sum().sqrt() / known.sum())

    def over(self, other: "Ratio") -> "Ratio":
        """self / other - 1, for independent ratios."""
        q = self.value / other.value
        return Ratio(q - 1, q * ((self.error / self.value) ** 2 + (other.error / other.value) ** 2).sqrt())


def ratio(top: Tensor, bottom: Tensor, k: Tensor) -> Ratio:
    """sum(top) / sum(bottom) in each bin, for pairs (n,) in bins k (n,).

    The standard error is that of the ratio estimator: variation common to top and bottom cancels.
    Source: Cochran 1977, Sampling Techniques, eq. 6.13.
    """
    value, error = (torch.full((BINS,), math.nan, dtype=torch.float64) for _ in range(2))
    for b in k.unique().tolist():
        mine = k == b
        if (n := int(mine.sum())) >= FEW:
            value[b] = top[mine].sum() / bottom[mine].sum()
            rest = (top - value[b] * bottom)[mine]
            error[b] = (rest.square().sum() * n / (n - 1)).sqrt() / bottom[mine].sum()
    return Ratio(value, error)


class Probe:
    """Images of a split with fixed levels and fixed noise, so that all probes of a run are comparable.

    Args:
        images: (n, C, H, W) in [-1, 1].
        y: their labels or contexts.
        seed: of the noise. The n levels are evenly spread over log-SNR; image k has the k-th.
        spectrum: of the training images; defines the unit of the errors.
    """

    def __init__(self, images: Tensor, y: Tensor, schedule: Schedule, seed: int, spectrum: Spectrum) -> None:
        draws = FixedDraws(seed, torch.arange(len(images)))
        self.level = schedule.level(spread(schedule, draws.uniform(len(images))))
        self.x0, self.y, self.t = images, y, self.level.like(images)
        self.x = self.t.alpha * images + self.t.sigma * draws.normal(images)
        self.k = bins(self.level.log_snr)
        self.unit = spectrum.error(self.level.log_snr)
        self.linear = self.of(spectrum.denoise(self.x, self.t))

    def of(self, guess: Tensor) -> Tensor:
        """The error of estimates of x_0, in units of the linear denoiser's expected error: (n,) float64."""
        return (guess.cpu().float() - self.x0).square().flatten(1).mean(1).double() / self.unit

    @torch.no_grad()
    def errors(
        self,
        denoiser: Denoiser,
        y: Tensor | None,
        device: torch.device,
        batch_size: int,
        image: Tensor | None = None,
    ) -> Tensor:
        """A denoiser's errors with labels y, and with the hints `image` if it is conditioned on any: (n,) float64."""
        guesses = []
        for part in torch.arange(len(self.x)).split(batch_size):
            level = Level(*(v[part] for v in self.level))
            cond = Condition(*(v if v is None else v[part].to(device) for v in (y, None, None, image)))
            guesses.append(denoiser(self.x[part].to(device), level, cond).x0)
        return self.of(torch.cat(guesses))

    def score(self, errors: Tensor) -> Ratio:
        """Errors relative to the linear denoiser's on the same images and noise."""
        return ratio(errors, self.linear, self.k)


def law(times: Times, schedule: Schedule, n: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """Distribution of training levels: the share of each bin (BINS,), and log-SNR limits of the central 99.998 %."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    seen = schedule.level(times(u, schedule)).log_snr
    # Stratified times give each image of a batch its own slice, so the tails are evaluated as whole batches.
    ends = [schedule.level(times(v.repeat(64), schedule)).log_snr for v in TAILS]
    ends = torch.cat([seen, *ends])
    return torch.bincount(bins(seen), minlength=BINS).double() / n, ends.min(), ends.max()
