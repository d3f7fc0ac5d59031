"""The error of a denoiser by noise level, in a unit that every target, weight and schedule shares."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise.draws import FixedDraws
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times

END, WIDTH = 10, 2  # bins of log-SNR are fixed, so that runs can be compared; the outer two are open
BINS = 2 * END // WIDTH
FEW = 4  # images in a bin, below which its mean and error bar say nothing
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
    """Mean and variance of a data set at each frequency F x_0, and the best denoiser that is linear there:

        F x_0_hat = mean + alpha var / (alpha^2 var + sigma^2) (F x - alpha mean)
        E |x_0 - x_0_hat|^2 = mean_k var_k / (snr var_k + 1)

    Exact for any data whatever their law, since only second moments enter. A network that learns more than the
    average power of the images is better. Its error is a unit: a target is linear in (x_0, eps) and x is given, so a
    ratio of two errors is the same in x_0, in eps, and in what the network says.
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
        """The expected squared error of x_0 a pixel at each log-SNR (B,), float64; between knots good to 1e-4."""
        at = (log_snr.double().clamp(KNOTS[0], KNOTS[-1]) - KNOTS[0]) / (KNOTS[1] - KNOTS[0])
        k = at.long().clamp(max=len(KNOTS) - 2)
        return torch.lerp(self._table[k], self._table[k + 1], at - k).exp()

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """x_0_hat of x (B, C, H, W)."""
        gain = t.alpha * self.var / (t.alpha**2 * self.var + t.sigma**2)
        f = torch.fft.fft2(x, norm="ortho")
        return torch.fft.ifft2(self.mean + gain * (f - t.alpha * self.mean), norm="ortho").real

    def std(self, t: Level) -> Tensor:
        """Root mean square of x at a level (), for each channel and frequency (C, H, W)."""
        return (t.alpha**2 * self.power + t.sigma**2).sqrt()


def ideal(x: Tensor, t: Level, images: Tensor, mine: Tensor | None = None) -> Tensor:
    """E[x_0 | x] over a set of images: what a network of endless capacity learns, and no other beats on that set.

    `analytic.Empirical` by a matrix product: many images at levels of their own, in float32.
    Source: Karras et al. 2022, arXiv:2206.00364, app. B.3, eq. 57.

    Args:
        mine: (B, N) bool, which of the images each x may be: those of its label, for a network that is told it.
    """
    flat, alpha, sigma = images.flatten(1), t.alpha.flatten(1), t.sigma.flatten(1)
    kernel = (alpha * (x.flatten(1) @ flat.T) - alpha**2 / 2 * flat.square().sum(1)) / sigma**2  # up to a constant
    if mine is not None:
        kernel = kernel.masked_fill(~mine, -math.inf)
    return (kernel.softmax(1) @ flat).reshape(x.shape)


def spread(schedule: Schedule, u: Tensor) -> Tensor:
    """Times, even in log-SNR over what the schedule has between the outer bins' ends, for u (n,) in [0, 1)."""
    ends = schedule.level(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).log_snr.clamp(-END, END)
    t = schedule.time(torch.lerp(ends[0], ends[1], u)).clamp(schedule.t_min, 1)
    return (t * schedule.T).round().clamp(1, schedule.T) / schedule.T if schedule.T else t


class Ratio(NamedTuple):
    """A ratio by bin (nan where there are too few images), its standard error, and the mean of the bins."""

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
        """self / other - 1, of two independent ratios."""
        q = self.value / other.value
        return Ratio(q - 1, q * ((self.error / self.value) ** 2 + (other.error / other.value) ** 2).sqrt())


def ratio(top: Tensor, bottom: Tensor, k: Tensor) -> Ratio:
    """sum(top) / sum(bottom) in each bin, for pairs (n,) in bins k (n,).

    The error bar is that of the ratio estimator: what top / bottom has in common from image to image cancels.
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
    """Some images of a split with fixed levels and fixed noise: the same questions every time.

    Args:
        images: (n, C, H, W) in [-1, 1].
        y: their labels or contexts.
        seed: of the noise. Image k has level k of n that are spread evenly over log-SNR.
        spectrum: of the training images, the unit of the errors.
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
        """The error of guesses of x_0, in units of what the linear denoiser is expected to have (n,), float64."""
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
        """A denoiser's errors with labels y, and with hints of the images where it is shown any: (n,) float64."""
        guesses = []
        for part in torch.arange(len(self.x)).split(batch_size):
            level = Level(*(v[part] for v in self.level))
            cond = Condition(*(v if v is None else v[part].to(device) for v in (y, None, None, image)))
            guesses.append(denoiser(self.x[part].to(device), level, cond).x0)
        return self.of(torch.cat(guesses))

    def score(self, errors: Tensor) -> Ratio:
        """Errors as a share of the linear denoiser's own on these very images and this noise."""
        return ratio(errors, self.linear, self.k)


def law(times: Times, schedule: Schedule, n: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """What training looks at: the share of each bin (BINS,), and the ends of log-SNR that hold 99.998 % of it."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    seen = schedule.level(times(u, schedule)).log_snr
    # Times that give each image of a batch its own slice are asked for the tails as whole batches.
    ends = [schedule.level(times(v.repeat(64), schedule)).log_snr for v in TAILS]
    ends = torch.cat([seen, *ends])
    return torch.bincount(bins(seen), minlength=BINS).double() / n, ends.min(), ends.max()
