"""DPM2: the midpoint method."""

from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.level import Level, between
from diffusion.samplers.base import Noise, Past, Sampler, abrupt, jump


class DPM2(Sampler):
    """A step with the eps of its middle: the middle in log(sigma / alpha), the step in r = sigma / alpha.

        r_m = sqrt(r_t r_s),    x_m = Euler's step to r_m
        x_s / alpha_s = x / alpha_t + (r_s - r_t) eps(x_m, m)

    Second order. Two evaluations a step, one in the last.
    Source: k-diffusion, sample_dpm_2; Karras et al. 2022, arXiv:2206.00364, alg. 3; DPM-Solver-2 of Lu et al. 2022,
    arXiv:2206.00927, alg. 1, whose first stage ends at the same middle.

    Args:
        steps: number of steps, >= 1.
        grid: which levels, see Sampler.
    """

    convergence = 2

    def step(
        self, denoise: Denoise, x: Tensor, t: Level, s: Level, past: Past, noise: Noise
    ) -> tuple[Tensor, Prediction]:
        pred = denoise(x, t)
        if abrupt(t, s):
            return jump(pred, s), pred
        m = between((t.alpha * s.alpha).sqrt(), (t.sigma * s.sigma).sqrt())
        mid = denoise(jump(pred, m), m)
        return jump(pred, s) + s.alpha * (s.ratio - t.ratio) * (mid.eps - pred.eps), pred
