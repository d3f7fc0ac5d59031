"""Helpers shared by several samplers."""

from collections import deque

from torch import Tensor

from diffusion.denoiser import Prediction
from diffusion.noise.level import Level

Past = deque[tuple[Level, Prediction]]  # newest last; every multistep method needs at most three


def first_order_only(t: Level, s: Level, max_ratio: float = float("inf")) -> bool:
    """Whether the step from t to s must be of first order: s is clean, or t has no signal and log-SNR -inf.

    Args:
        max_ratio: largest sigma / alpha at t for a step of higher order; see Heun.
    """
    return bool(s.sigma == 0) or bool(t.alpha == 0) or bool(t.sigma > max_ratio * t.alpha)


def half_log_snr(t: Level) -> Tensor:
    """lambda = log(alpha / sigma), the time variable of the exponential integrators."""
    return t.log_snr / 2


def with_signal(past: Past) -> list[tuple[Level, Prediction]]:
    """The past without levels of no signal, whose log-SNR is -inf; newest first."""
    return [(t, pred) for t, pred in reversed(past) if t.alpha > 0]
