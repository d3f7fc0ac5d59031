"""Advice of the diagnostics: each rule returns a sentence with a remedy, or None if there is no problem."""

import torch

from diffusion.noise import grids
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times
from diffusion.samplers import Sampler
from diffusion.training.callbacks.levels import END, NAMES, WIDTH, Ratio, Spectrum, law

OFF = 1.2  # tolerated ratio of a component of x at t = 1 to the prior
GAP = 0.15  # tolerated excess of the validation error, relative to the training error
LAG = 0.05  # tolerated excess of the averaged weights' error, relative to the raw weights'
SURE = 3.0  # standard errors
LEARNED = 0.9  # in units of the linear denoiser's error: a network above it has learned too little to be judged


class Advice(UserWarning):
    """A problem in a training run, with a remedy."""


def prior_mismatch(spectrum: Spectrum, schedule: Schedule) -> str | None:
    """Advice if the noise that sampling starts from and x at t = 1 differ in strength at some frequency of a channel.

    Usually it is the mean brightness that differs: its power in real images is hundreds of times that of a pixel.
    Source: Lin et al. 2023, arXiv:2305.08891, sec. 3.1.
    """
    std = spectrum.std(schedule.level(torch.ones((), dtype=torch.float64))) / schedule.prior_std
    high, low = float(std.max()), float(std.min())
    if low * OFF >= 1 and high <= OFF:
        return None
    if high > OFF:
        at = "their mean brightness" if std[:, 0, 0].max() == std.max() else "their coarse structure"
        remedy = "Raise the final noise level (zero_snr: true with the target V, a larger beta_end, T or sigma_max)"
        return (
            f"prior mismatch: at t = 1 the training images are still visible; {at} has {high:.2f} times the strength "
            f"of the noise that sampling starts from, so brightness and contrast of samples will be off. {remedy}"
        )
    return (
        f"prior mismatch: sampling starts from noise of standard deviation {schedule.prior_std:g}, which is "
        f"{1 / low:.2f} times that of training images at t = 1. Set the schedule's prior_std to the sigma at t = 1"
    )


def never_trained(times: Times, schedule: Schedule, sampler: Sampler) -> str | None:
    """Advice if sampling visits levels more than one bin outside the range of the training levels.

    Levels beyond the outer bins are indistinguishable, so they count as the bins' ends.
    """
    visits = schedule.level(grids.times(sampler.grid, schedule, sampler.steps)).log_snr.clamp(-END, END)
    _, low, high = law(times, schedule)
    outside = visits[(visits < low - WIDTH) | (visits > high + WIDTH)]
    if not len(outside):
        return None
    return (
        f"levels never trained: {len(outside)} of the {len(visits)} levels that {type(sampler).__name__} visits have a "
        f"log-SNR of {outside.min():.1f} .. {outside.max():.1f}, but {type(times).__name__} times cover {low:.1f} .. "
        f"{high:.1f}. The network is untrained there. Widen the times (times: Uniform, or a larger std), or narrow the "
        "schedule (sigma_max, sigma_min)"
    )


def labels_unused(kinds: int, takes: int, drop: float) -> str | None:
    """Advice if the data have labels that the network never receives.

    Args:
        kinds: number of classes or context features of the data.
        takes: number that the network is conditioned on.
        drop: probability that an image's label is dropped.
    """
    if not kinds or takes and drop < 1:
        return None
    if takes:
        return "labels never used: objective.drop is 1, so the network never receives a label. Set it to 0.1"
    return (
        f"labels never used: the data have {kinds} classes, but the network takes none, so samples cannot be requested "
        "by class. Use a network with num_classes (or context_dim), or set data.labels: false"
    )


def labels_ignored(gain: Ratio, score: Ratio) -> str | None:
    """Advice if wrong labels do as well as the right ones, although the network is better than a linear denoiser."""
    if not (float(score.value.nanmedian()) <= LEARNED and gain.mean <= max(2 * gain.margin, 1e-4)):
        return None
    return (
        f"labels ignored: shuffled labels change the error by {gain.mean:+.2%} (standard error {gain.margin:.2%}), "
        "which is not significant, so samples will not follow the label. Check that images and labels match, and "
        "that objective.drop is well below 1; otherwise train longer"
    )


def overfitting(gap: Ratio, best: int, step: int) -> str | None:
    """Advice if validation errors exceed training errors, each relative to the linear denoiser's on the same images.

    Args:
        best: step of the lowest val/loss so far, 0 if there is none.
    """
    if not gap.mean >= max(GAP, SURE * gap.margin):  # nan (too few images) gives no advice
        return None
    worst = int(gap.value.nan_to_num(-1).argmax())
    since = f"; val/loss was lowest at step {best:,}" if 0 < best < step else ""
    return (
        f"overfitting: the error on validation images is {gap.mean:.0%} above that on training images (standard error "
        f"{gap.margin:.0%}), most at {NAMES[worst][2:]} ({float(gap.value[worst]):.0%}){since}. The network is "
        "memorising its training images. Use more images, flips, dropout or weight_decay, a smaller network, or stop "
        "earlier"
    )


def ema_not_warm(lag: Ratio, updates: int, decay: float) -> str | None:
    """Advice if the averaged weights are worse than the raw ones at the end of training."""
    if not lag.mean >= max(LAG, SURE * lag.margin):
        return None
    return (
        f"EMA not warm: after {updates:,} updates the averaged weights have an error {lag.mean:.0%} above that of the "
        f"raw weights (standard error {lag.margin:.0%}); they still contain early ones. Train longer, lower "
        f"--ema.decay (now {decay:g}), or sample with --weights raw"
    )
