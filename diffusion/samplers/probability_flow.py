"""ProbabilityFlow: the probability flow ODE with an adaptive solver."""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.likelihood.ode import rk45
from diffusion.noise.grids import Grid
from diffusion.noise.level import Level, off_grid
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past


class ProbabilityFlow(Sampler):
    """The ODE with the marginals of the forward process, solved to a given tolerance.

        dx = x_0(x) d alpha + eps(x) d sigma,    alpha and sigma linear between two levels

    Only their ratio matters: any path between two levels has the same end. Each image has its own step size (Dormand
    and Prince's method, six evaluations per step). The last step, to the clean level, is DDIM's.
    Source: Song et al. 2021, arXiv:2011.13456, eq. 13 and app. D.4, in these variables.

    Args:
        steps: number of frames, >= 1; the number of evaluations follows from the tolerances.
        rtol, atol: allowed error per step of the solver, relative and in pixel values, > 0.
        grid: the levels of the frames, see Sampler.
    Raises:
        ValueError: a tolerance that is not positive.
    """

    def __init__(self, steps: int = 5, rtol: float = 1e-3, atol: float = 1e-3, grid: Grid = "linspace") -> None:
        super().__init__(steps, grid)
        if rtol <= 0 or atol <= 0:
            raise ValueError(f"ProbabilityFlow: rtol and atol must be positive, got {rtol} and {atol}")
        self.rtol, self.atol = rtol, atol

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        if s.sigma == 0:
            return pred.jump(s), pred

        def velocity(u: Tensor, y: Tensor) -> Tensor:
            now = off_grid(torch.lerp(t.alpha, s.alpha, u), torch.lerp(t.sigma, s.sigma, u))
            inner = denoise(y.view_as(x), now) if u.any() else pred
            return ((s.alpha - t.alpha) * inner.x0 + (s.sigma - t.sigma) * inner.eps).flatten(1)

        return rk45(velocity, x.flatten(1), self.rtol, self.atol).view_as(x), pred
