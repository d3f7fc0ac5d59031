"""UniPC: a multistep predictor, corrected by its next evaluation."""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction, predict
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past, first_order_only, half_log_snr, with_signal


class UniPC(Sampler):
    """DPMSolver's polynomial in x_0; each new evaluation first corrects the previous step.

        x_s = (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) (x_0 + sum_i w_i (x_0(i) - x_0) / r_i)
        r_i = (lam_i - lam_t) / h,    w from the moments sum_i w_i r_i^(k-1) = b_k,    B(h) = exp(-h) - 1 ("bh2")

    One evaluation per step: the corrector reuses the x_0 evaluated at the predicted x, and eps is recomputed for the
    corrected x. A predictor of order p has order p + 1 with its corrector.
    Source: Zhao et al. 2023, arXiv:2302.04867, alg. 1, 2 and sec. 3.3.

    Args:
        steps: network evaluations, >= 1.
        order: of the predictor, 1, 2 or 3; use 2 for guided sampling.
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: an order other than 1, 2 or 3.
    """

    def __init__(self, steps: int = 20, order: int = 2, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if order not in (1, 2, 3):
            raise ValueError(f"UniPC: order must be 1, 2 or 3, got {order}")
        self.order, self.convergence = order, order + 1

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        used = with_signal(past)
        if used and not first_order_only(used[0][0], t):
            pred = predict(_move(used[: self.order], t, pred.x0), pred.x0, t)
        if first_order_only(t, s):
            return pred.jump(s), pred
        return _move([(t, pred), *used][: self.order], s), pred


def _move(known: list[tuple[Level, Prediction]], s: Level, x0_s: Tensor | None = None) -> Tensor:
    """x at s, from the first known level, the known predictions and, if given, x_0 at s itself."""
    (t, pred), *others = known
    h = half_log_snr(s) - half_log_snr(t)
    r = [(half_log_snr(u) - half_log_snr(t)) / h for u, _ in others]
    slopes = [(q.x0 - pred.x0) / r_i for (_, q), r_i in zip(others, r, strict=True)]
    if x0_s is not None:
        r, slopes = [*r, torch.ones_like(h)], [*slopes, x0_s - pred.x0]
    mean = pred.x0  # over the step, weighted by the integrator
    for w, slope in zip(_weights(r, -h), slopes, strict=True):
        mean = mean + w * slope
    return s.sigma / t.sigma * pred.jump(t) - s.alpha * torch.expm1(-h) * mean


def _weights(r: list[Tensor], h: Tensor) -> list[Tensor]:
    if len(r) < 2:
        return [torch.full_like(h, 0.5)] * len(r)  # the published shortcut, exact to the required order
    b, moment = [], torch.expm1(h)
    for k in range(1, len(r) + 1):  # b_k = k! phi_{k+1}(h) h / B(h)
        moment = moment * k / h - 1
        b.append(moment / torch.expm1(h))
    return list(torch.linalg.solve(torch.stack([torch.stack(r) ** k for k in range(len(r))]), torch.stack(b)))
