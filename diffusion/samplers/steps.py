"""What the steps of several samplers have in common."""

from collections import deque

from torch import Tensor

from diffusion.denoiser import Prediction
from diffusion.noise.level import Level

Past = deque[tuple[Level, Prediction]]  # newest last; three are enough for every multistep method


def jump(pred: Prediction, s: Level) -> Tensor:
    """The plain first-order step: x_0 and eps as they are, at level s."""
    return s.alpha * pred.x0 + s.sigma * pred.eps


def first_order_only(t: Level, s: Level, max_ratio: float = float("inf")) -> bool:
    """Whether the step from t to s has to be of first order: s is clean, or t has no signal and so no log-SNR.

    Args:
        max_ratio: the same for levels t whose sigma / alpha is above this; see the samplers that take it.
    """
    return bool(s.sigma == 0) or bool(t.alpha == 0) or bool(t.sigma > max_ratio * t.alpha)


def half_log_snr(t: Level) -> Tensor:
    """lambda = log(alpha / sigma), the clock of the exponential integrators."""
    return t.log_snr / 2


def with_signal(past: Past) -> list[tuple[Level, Prediction]]:
    """What a multistep method may use of the past, newest first: levels without signal have no log-SNR."""
    return [(t, pred) for t, pred in reversed(past) if t.alpha > 0]
