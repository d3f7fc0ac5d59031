"""The likelihood of images under the probability flow ODE, by the change of variables along it."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion.denoiser import AnyLevel, Denoise
from diffusion.likelihood.ode import rk45
from diffusion.noise import Schedule
from diffusion.noise.level import off_grid

Divergence = Literal["hutchinson", "exact"]


def log_likelihood(
    denoise: Denoise,
    x0: Tensor,
    schedule: Schedule,
    divergence: Divergence = "hutchinson",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """log p(x0) of each image (B,), a density in nats, under the probability flow from the least noisy level.

        log p(x0) = log N(x_1; 0, prior_std^2) + integral of div(dx / du) du + D log alpha,    x = alpha x0 at the start
        dx / du = x_0(x) d alpha / du + eps(x) d sigma / du,    u from the level t_min (0) to t = 1 (1)

    This is the model's density of images that carry the noise of level t_min.
    Source: Chen et al. 2018, arXiv:1806.07366, eq. 8; Song et al. 2021, arXiv:2011.13456, app. D.2, in the variables of
    `ProbabilityFlow`; hutchinson: Grathwohl et al. 2019, arXiv:1810.01367, eq. 7, one Rademacher probe per image.

    Args:
        denoise: must be differentiable in x and not clamped: a clamp is not invertible.
        divergence: "exact" takes D backward passes where the unbiased estimate "hutchinson" takes one.
        rtol, atol: tolerances of the solver.
        noise: returns N(0, I) of a tensor's shape, whose signs are the probe.
    """
    first, last = (schedule.level(torch.tensor(t, dtype=torch.float64)) for t in (schedule.t_min, 1.0))
    denoise = AnyLevel(denoise, schedule)
    B, D = len(x0), x0[0].numel()
    if divergence == "exact":
        probes = torch.eye(D, dtype=x0.dtype, device=x0.device)[:, None].expand(-1, B, -1)  # (D, B, D)
    else:
        probes = torch.where(noise(x0) < 0, -1.0, 1.0).to(x0).flatten(1)[None]  # (1, B, D)

    def f(u: Tensor, y: Tensor) -> Tensor:
        now = off_grid(torch.lerp(first.alpha, last.alpha, u), torch.lerp(first.sigma, last.sigma, u))
        with torch.enable_grad():
            x = y[:, :D].detach().requires_grad_()
            pred = denoise(x.view_as(x0), now)
            speed = ((last.alpha - first.alpha) * pred.x0 + (last.sigma - first.sigma) * pred.eps).flatten(1)
            grown = [torch.autograd.grad(speed, x, v, retain_graph=True)[0] * v for v in probes]
        return torch.cat([speed.detach(), sum(grown).sum(1, keepdim=True)], dim=1)

    y = rk45(f, torch.cat([first.alpha * x0.flatten(1), torch.zeros_like(x0.flatten(1)[:, :1])], 1), rtol, atol)
    x1, gained = y[:, :D], y[:, D]
    std = schedule.prior_std
    ends = -0.5 * (x1 / std).square().sum(1) - D * (0.5 * math.log(2 * math.pi) + math.log(std))
    return ends + gained + D * float(first.alpha.log())


def dequantise(x0: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
    """Pixels k / 127.5 - 1 with uniform noise over their bins, 2 / 255 wide, so that densities compare with masses."""
    return x0 + (torch.special.ndtr(noise(x0)) - 0.5) * (2 / 255)


def bits_per_dim(log_density: Tensor, D: int) -> Tensor:
    """Bits per dimension of log-densities (B,), in nats, of dequantised pixels: -log2 p / D + log2(255 / 2).

    By Jensen's inequality, an upper bound in expectation on the bits of the discrete image.
    Source: Theis et al. 2016, arXiv:1511.01844, sec. 3.1.
    """
    return -log_density / (D * math.log(2)) + math.log2(127.5)
