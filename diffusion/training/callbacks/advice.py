"""What diagnostics say in plain language: each rule gives a sentence with a remedy, or None where all is well."""

import torch

from diffusion.noise import grids
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times
from diffusion.samplers import Sampler
from diffusion.training.callbacks.levels import END, NAMES, WIDTH, Ratio, Spectrum, law

OFF = 1.2  # a component of x at t = 1 may differ from the prior by this factor
GAP = 0.15  # of the training error, by which the validation error may be larger
LAG = 0.05  # of the raw weights' error, by which that of the averaged weights may be larger
SURE = 3.0  # standard errors
LEARNED = 0.9  # of the linear denoiser's error: a network above it has learned too little to be judged


class Advice(UserWarning):
    """Something about a training run that its owner would want to know."""


def prior_mismatch(spectrum: Spectrum, schedule: Schedule) -> str | None:
    """Sampling starts from noise of another strength than training ends with, at some frequency of some channel.

    Almost always that is the mean brightness, whose power in real images is hundreds of times a pixel's.
    Source: Lin et al. 2023, arXiv:2305.08891, sec. 3.1.
    """
    std = spectrum.std(schedule.level(torch.ones((), dtype=torch.float64))) / schedule.prior_std
    high, low = float(std.max()), float(std.min())
    if low * OFF >= 1 and high <= OFF:
        return None
    if high > OFF:
        at = "their mean brightness" if std[:, 0, 0].max() == std.max() else "their coarse structure"
        remedy = "End in more noise (zero_snr: true with the target V, a larger beta_end, T or sigma_max)"
        return (
            f"prior mismatch: at t = 1 the training images still show; {at} has {high:.2f} times the strength of the "
            f"noise that sampling starts from, so brightness and contrast of samples will be off. {remedy}"
        )
    return (
        f"prior mismatch: sampling starts from noise of standard deviation {schedule.prior_std:g}, which is "
        f"{1 / low:.2f} times what training images have at t = 1. Set the schedule's prior_std to the sigma of t = 1"
    )


def never_trained(times: Times, schedule: Schedule, sampler: Sampler) -> str | None:
    """Sampling visits levels more than a bin away from all that training draws.

    Beyond the outer bins nothing is left to tell levels apart, so they count as the bins' ends.
    """
    visits = schedule.level(grids.times(sampler.grid, schedule, sampler.steps)).log_snr.clamp(-END, END)
    _, low, high = law(times, schedule)
    outside = visits[(visits < low - WIDTH) | (visits > high + WIDTH)]
    if not len(outside):
        return None
    return (
        f"levels never trained: {len(outside)} of the {len(visits)} levels that {type(sampler).__name__} visits have a "
        f"log-SNR of {outside.min():.1f} .. {outside.max():.1f}, but {type(times).__name__} times train {low:.1f} .. "
        f"{high:.1f}. The network has to guess there. Widen the times (times: Uniform, or a larger std), or narrow the "
        "schedule (sigma_max, sigma_min)"
    )


def labels_unused(kinds: int, takes: int, drop: float) -> str | None:
    """The data have labels that the network is never shown.

    Args:
        kinds: classes, or features of a context, that the data give.
        takes: those that the network takes.
        drop: probability that an image's label is left out.
    """
    if not kinds or takes and drop < 1:
        return None
    if takes:
        return "labels never used: objective.drop is 1, so the network never hears a label. Set it to 0.1"
    return (
        f"labels never used: the data give {kinds} classes, but the network takes none, so samples cannot be asked "
        "for by class. Use a network with num_classes (or context_dim), or say data.labels: false"
    )


def labels_ignored(gain: Ratio, score: Ratio) -> str | None:
    """The wrong labels do as well as the right ones, and the network is past the stage of a linear denoiser."""
    if not (float(score.value.nanmedian()) <= LEARNED and gain.mean <= max(2 * gain.margin, 1e-4)):
        return None
    return (
        f"labels ignored: shuffled labels change the error by {gain.mean:+.2%} (standard error {gain.margin:.2%}), "
        "which is nothing, so samples will not follow the label. Check that images and labels belong together, and "
        "that objective.drop is well below 1; else train longer"
    )


def overfitting(gap: Ratio, best: int, step: int) -> str | None:
    """The error on validation images is larger than on training images, by more than both sets' difficulty explains.

    Args:
        best: the step of the lowest val/loss so far, 0 if there is none.
    """
    if not gap.mean >= max(GAP, SURE * gap.margin):  # nan, where there are too few images, is no reason either
        return None
    worst = int(gap.value.nan_to_num(-1).argmax())
    since = f"; val/loss was lowest at step {best:,}" if 0 < best < step else ""
    return (
        f"overfitting: the error on validation images is {gap.mean:.0%} above that on training images (standard error "
        f"{gap.margin:.0%}), most at {NAMES[worst][2:]} ({float(gap.value[worst]):.0%}){since}. The network is "
        "learning its training images by heart. Use more images, flips, dropout or weight_decay, a smaller network, "
        "or stop earlier"
    )


def ema_not_warm(lag: Ratio, updates: int, decay: float) -> str | None:
    """At the end of training the averaged weights do worse than the raw ones."""
    if not lag.mean >= max(LAG, SURE * lag.margin):
        return None
    return (
        f"EMA not warm: after {updates:,} updates the averaged weights have an error {lag.mean:.0%} above that of the "
        f"raw weights (standard error {lag.margin:.0%}); they still hold early ones. Train longer, lower --ema.decay "
        f"(now {decay:g}), or sample with --weights raw"
    )
