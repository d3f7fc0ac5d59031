"""DEIS: an exponential integrator in eps."""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past, first_order_only, half_log_snr, with_signal


class DEIS(Sampler):
    """Exact integration of the polynomial in log(sigma / alpha) that interpolates eps at this and the last steps.

        x_s / alpha_s = x / alpha_t + integral from r_t to r_s of P(log r) dr,    r = sigma / alpha

    Adams-Bashforth with weights e^-lam. One evaluation per step. The first steps and the last are of lower order.
    Source: Zhang & Chen 2023, arXiv:2204.13902, eq. 15-16, with log r in place of t.

    Args:
        steps: network evaluations, >= 1.
        order: 1 (DDIM) to 4; 4 needs many steps.
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: order outside 1 .. 4.
    """

    def __init__(self, steps: int = 20, order: int = 3, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if order not in (1, 2, 3, 4):
            raise ValueError(f"DEIS: order must be 1, 2, 3 or 4, got {order}")
        self.order = self.convergence = order

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        known = [(t, pred), *with_signal(past)][: self.order]
        if first_order_only(t, s) or len(known) == 1:
            return pred.jump(s), pred
        h = half_log_snr(s) - half_log_snr(t)
        places = [(half_log_snr(v) - half_log_snr(t)) / h for v, _ in known]
        u = torch.stack(places)  # where eps is known: 0 at t, 1 at s
        moments = [-torch.expm1(-h) / h]  # of e^(-h u) on [0, 1]
        for k in range(1, len(known)):
            moments.append((k * moments[-1] - (-h).exp()) / h)
        weights = torch.linalg.solve(torch.stack([u**k for k in range(len(known))]), torch.stack(moments))
        x = pred.jump(s)  # the weights sum to moments[0], which is this step; the rest is a correction
        for w, (_, q) in zip(weights[1:], known[1:], strict=True):
            x = x - s.alpha * t.ratio * h * w * (q.eps - pred.eps)
        return x, pred
