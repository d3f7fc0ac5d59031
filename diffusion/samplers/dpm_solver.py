"""DPM-Solver++, multistep."""

from torch import Tensor, expm1

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past, first_order_only, half_log_snr, with_signal


class DPMSolver(Sampler):
    """The linear part of the ODE (or SDE) solved exactly, with x_0 a polynomial in lam = log(alpha / sigma).

        x_s = (sigma_s / sigma_t) x + alpha_s (c_0 x_0 + c_1 D_1 + c_2 D_2),    h = lam_s - lam_t
        c_0 = 1 - exp(-h),    c_1 = 1 - c_0 / h,    c_2 = 1/2 - c_1 / h

    D_1 and D_2 estimate h x_0' and h^2 x_0'' from the last steps' x_0; order 2 uses c_0 / 2 for c_1, as published.
    Order 3 uses all of D_2, whereas the authors' code and diffusers use half of it and are therefore of order 2.
    sde: 2h replaces h in the c's, x is scaled by another exp(-h), and sigma_s sqrt(1 - exp(-2h)) z is added.
    One evaluation per step. The first steps and the last are of lower order.
    Source: Lu et al. 2022, arXiv:2211.01095, alg. 2 (2M) and app. A (SDE-2M); order 3: arXiv:2206.00927, app. B.

    Args:
        steps: network evaluations, >= 1.
        order: 1 (DDIM), 2 or 3; use 2 for guided sampling.
        sde: solve the reverse SDE instead of the ODE: a random walk that corrects earlier errors.
        grid: the levels of the walk, see Sampler.
    Raises:
        ValueError: an order other than 1, 2 or 3.
    """

    def __init__(self, steps: int = 20, order: int = 2, sde: bool = False, grid: Grid = "trailing") -> None:
        super().__init__(steps, grid)
        if order not in (1, 2, 3):
            raise ValueError(f"DPMSolver: order must be 1, 2 or 3, got {order}")
        self.order, self.sde = order, sde
        self.convergence = None if sde else order

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        if first_order_only(t, s):
            return pred.jump(s), pred
        h = half_log_snr(s) - half_log_snr(t)
        H = 2 * h if self.sde else h
        c0 = -expm1(-H)
        mean = c0 * pred.x0  # of x_0 over the step, weighted by the integrator
        used = with_signal(past)[: self.order - 1]
        if used:
            u, q = used[0]
            r = (half_log_snr(t) - half_log_snr(u)) / h
            d1 = (pred.x0 - q.x0) / r
            if len(used) == 1:
                mean = mean + c0 / 2 * d1
            else:
                v, p = used[1]
                k = (half_log_snr(u) - half_log_snr(v)) / h
                d2 = (d1 - (q.x0 - p.x0) / k) / (r + k)
                c1 = 1 - c0 / H
                mean = mean + c1 * (d1 + r * d2) + (0.5 - c1 / H) * 2 * d2
        x = s.sigma / t.sigma * (h - H).exp() * x + s.alpha * mean
        return (x + s.sigma * (-expm1(-2 * h)).sqrt() * noise(x) if self.sde else x), pred
