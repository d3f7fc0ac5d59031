"""The Euler-Maruyama method for the reverse SDE."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.level import Level, forward_var
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past, first_order_only


class EulerMaruyama(Sampler):
    """Discretised reverse SDE, score = -eps / sigma_t.

        x_s = (2 - alpha_t / alpha_s) x + var score + sqrt(var) z,    var = Var[x_t | x_s]

    Drift and variance are those of the forward step from s to t, run backwards ("reverse diffusion"), so that f and g
    of the schedule are not needed. The last step returns x_0. One evaluation per step; needs hundreds of steps.
    Source: Song et al. 2021, arXiv:2011.13456, eq. 46-47 and alg. 2-3.

    Args:
        steps: network evaluations, >= 1.
        grid: the levels of the walk, see Sampler.
    """

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        if first_order_only(t, s):
            return pred.jump(s), pred
        var = forward_var(s, t)
        return (2 - t.alpha / s.alpha) * x - var / t.sigma * pred.eps + var.sqrt() * noise(x), pred
