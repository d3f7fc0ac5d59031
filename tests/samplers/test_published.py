"""Samplers against the published code, rewritten here in its own form: in sigma, one image scale, no schedule.

k-diffusion (Katherine Crowson, github.com/crowsonkb/k-diffusion, sampling.py) is not on PyPI in a version that is
maintained; these are its `get_sigmas_karras`, `sample_heun`, `sample_dpm_2` and `sample_dpmpp_2m` without churn.
"""

import pytest
import torch

from diffusion.bench.analytic import Mixture
from diffusion.noise import Cosine, Karras
from diffusion.noise.level import Level
from diffusion.samplers import DPM2, DPMSolver, Heun

DATA = Mixture([-0.6, 0.1, 0.5], [0.05, 0.3, 0.1], [1.0, 2.0, 1.5])


def denoised(x, sigma):
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    return DATA(x, Level(sigma, torch.ones_like(sigma), sigma)).x0


def karras_sigmas(n, low=0.002, high=80.0, rho=7.0):
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return [*sigmas, torch.zeros((), dtype=torch.float64)]


def sample_heun(x, sigmas):
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        d, dt = (x - denoised(x, now)) / now, after - now
        if after == 0:
            x = x + d * dt
        else:
            end = x + d * dt
            x = x + (d + (end - denoised(end, after)) / after) / 2 * dt
    return x


def sample_dpm_2(x, sigmas):
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - denoised(x, now)) / now
        if after == 0:
            x = x + d * (after - now)
        else:
            middle = now.log().lerp(after.log(), 0.5).exp()
            half = x + d * (middle - now)
            x = x + (half - denoised(half, middle)) / middle * (after - now)
    return x


def sample_dpmpp_2m(x, sigmas):
    old = None
    for i, (now, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        new = denoised(x, now)
        h = now.log() - after.log()
        if old is None or after == 0:
            x = after / now * x - torch.expm1(-h) * new
        else:
            r = (sigmas[i - 1].log() - now.log()) / h
            x = after / now * x - torch.expm1(-h) * ((1 + 1 / (2 * r)) * new - 1 / (2 * r) * old)
        old = new
    return x


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9, 18, 40])
@pytest.mark.parametrize("ours, theirs", [(Heun, sample_heun), (DPM2, sample_dpm_2), (DPMSolver, sample_dpmpp_2m)],
                         ids=["Heun", "DPM2", "DPM-Solver++ 2M"])  # fmt: skip
def test_samplers_match_k_diffusion_on_edm_s_schedule(ours, theirs, steps):
    """sigma from 80 to 0.002: with four steps one of them divides sigma by 240, and still is of second order."""
    x = 80 * torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    published = theirs(x, karras_sigmas(steps))
    found = ours(steps, grid="linspace").sample(DATA, x, Karras())
    torch.testing.assert_close(found, published, rtol=1e-6, atol=1e-6)
    if steps > 2:  # of two steps of the multistep method, the first has no past and the last is clean
        assert (published - sample_euler(x, karras_sigmas(steps))).abs().max() > 1e-4


def sample_euler(x, sigmas):
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (x - denoised(x, now)) / now * (after - now)
    return x


@pytest.mark.parametrize("kind, theirs", [(Heun, sample_heun), (DPM2, sample_dpm_2)], ids=["Heun", "DPM2"])
def test_max_ratio_inf_is_the_published_method(kind, theirs):
    """Cosine starts at sigma / alpha = 20,000, above max_ratio's default: inf is the published method there too."""
    schedule = Cosine()
    levels = kind(8).levels(schedule)
    sigmas = [t.ratio for t in levels]
    assert float(sigmas[0]) == pytest.approx(20_292, rel=1e-3)
    x = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    published = theirs(x / levels[0].alpha, sigmas)
    found = kind(8, max_ratio=float("inf")).sample(DATA, x, schedule)
    torch.testing.assert_close(found, published, rtol=1e-6, atol=1e-6)
    first = x + 0 * x  # the limited walk is Euler's step to the second level, then the published one
    pred = DATA(first, levels[0])
    limited = theirs((levels[1].alpha * pred.x0 + levels[1].sigma * pred.eps) / levels[1].alpha, sigmas[1:])
    torch.testing.assert_close(kind(8).sample(DATA, x, schedule), limited, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=f"{kind.__name__}: max_ratio must be positive, got 0"):
        kind(8, max_ratio=0)
