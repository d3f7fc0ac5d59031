"""DPM-Solver++, singlestep."""

from torch import Tensor, expm1

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level, off_grid
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past, first_order_only, half_log_snr


class DPMSolverSingle(Sampler):
    """DPMSolver's step with derivatives of x_0 estimated inside the step, at h / 2 or at h / 3, 2h / 3.

        u_k = (sigma_k / sigma_t) x + alpha_k (c_0(r_k h) x_0 + c_1(r_k h) D_1 r_k),    D_1 = (x_0(u_j) - x_0) / r_j
        x_s = (sigma_s / sigma_t) x + alpha_s (c_0(h) x_0 + c_1(h) D_1)

    Order 2 uses c_0 / 2 for c_1, as published. As many evaluations per step as the order, one in the last.
    Source: Lu et al. 2022, arXiv:2211.01095, alg. 1 (2S); order 3: arXiv:2206.00927, alg. 2, with x_0 in place of eps.

    Args:
        steps: number of steps, >= 1; evaluations are about steps * order.
        order: 2 or 3.
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: an order other than 2 or 3.
    """

    def __init__(self, steps: int = 10, order: int = 2, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if order not in (2, 3):
            raise ValueError(f"DPMSolverSingle: order must be 2 or 3, got {order}")
        self.order = self.convergence = order

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        if first_order_only(t, s):
            return pred.jump(s), pred
        h, slope = half_log_snr(s) - half_log_snr(t), None
        for r in (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3):
            m = off_grid(t.alpha ** (1 - r) * s.alpha**r, t.sigma ** (1 - r) * s.sigma**r)
            inner = denoise(self._move(x, pred, slope, t, m, r * h, r), m)
            slope = (inner.x0 - pred.x0) / r
        return self._move(x, pred, slope, t, s, h, 1.0), pred

    def _move(
        self, x: Tensor, pred: Prediction, slope: Tensor | None, t: Level, s: Level, h: Tensor, r: float
    ) -> Tensor:
        c0 = -expm1(-h)
        mean = c0 * pred.x0  # of x_0 over the step, weighted by the integrator
        if slope is not None:
            mean = mean + r * (c0 / 2 if self.order == 2 else 1 - c0 / h) * slope
        return s.sigma / t.sigma * x + s.alpha * mean
