"""Parity with diffusers, on shared noise and a fixed non-linear "network": relative error <= 1e-5."""

import numpy as np
import pytest
import torch

from diffusion.denoiser import predict
from diffusion.guidance import Clamp
from diffusion.noise import Cosine, Linear, Quadratic, Sigmoid
from diffusion.samplers import DDIM, DDPM

diffusers = pytest.importorskip("diffusers", reason="parity tests need diffusers: pip install -e '.[test]'")

RTOL = 1e-5
SCHEDULES = {"linear": Linear, "scaled_linear": Quadratic, "sigmoid": Sigmoid, "squaredcos_cap_v2": Cosine}


def network(x: torch.Tensor, index: float) -> torch.Tensor:
    """A stand-in for eps: bounded, non-linear, different at every level and pixel."""
    return torch.tanh(1.3 * x.roll(1, -1) - 0.4 * x + 0.3 * np.cos(index / 90))


def ours(sampler, schedule, x, seed, clamp=False):
    def denoise(x, t):
        eps = network(x, float(schedule.clock(t.t)))
        return predict(x, (x - t.sigma * eps) / t.alpha, t)

    generator = torch.Generator().manual_seed(seed)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    return sampler.sample(Clamp()(denoise) if clamp else denoise, x, schedule, noise)


def theirs(scheduler, x, seed, steps, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    for index in scheduler.timesteps:
        x = scheduler.step(network(x, float(index)), index, x, generator=generator, **kwargs).prev_sample
    return x


def close(a, b):
    assert (a - b).norm() / b.norm() < RTOL, float((a - b).norm() / b.norm())


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_tables(name):
    schedule, other = SCHEDULES[name](), diffusers.DDPMScheduler(1000, beta_schedule=name)
    np.testing.assert_allclose(schedule.betas(), other.betas.double(), rtol=RTOL)
    abar = torch.cumprod(1 - other.betas.double(), 0)
    # In float32 their last cosine beta, .999, leaves 1 - beta with an error of 1.3e-5: that entry by its beta alone.
    np.testing.assert_allclose((schedule.alphas**2)[:-1], abar[:-1], rtol=RTOL)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm(name, variance, clamp, x):
    """Against a table in float64: theirs is recomputed from our betas, since float32 betas alone cost 1e-4."""
    schedule = SCHEDULES[name]()
    scheduler = diffusers.DDPMScheduler(
        trained_betas=schedule.betas().numpy(), variance_type=f"fixed_{variance}", clip_sample=clamp
    )
    upcast(scheduler, schedule)
    close(ours(DDPM(1000, variance), schedule, x, 1, clamp), theirs(scheduler, x, 1, 1000))


@pytest.mark.parametrize("steps", [10, 50, 250])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", ["trailing", "leading"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim(name, grid, eta, steps, x):
    schedule = SCHEDULES[name]()
    scheduler = diffusers.DDIMScheduler(
        trained_betas=schedule.betas().numpy(), timestep_spacing=grid, clip_sample=False, set_alpha_to_one=True
    )
    upcast(scheduler, schedule)
    close(ours(DDIM(steps, eta, grid), schedule, x, 2), theirs(scheduler, x, 2, steps, eta=eta))


@pytest.mark.parametrize("grid", ["trailing", "leading"])
def test_ddpm_respaced(grid, x):
    schedule = Linear()
    scheduler = diffusers.DDPMScheduler(
        trained_betas=schedule.betas().numpy(), timestep_spacing=grid, clip_sample=False
    )
    upcast(scheduler, schedule)
    close(ours(DDPM(100, "small", grid), schedule, x, 3), theirs(scheduler, x, 3, 100))


def upcast(scheduler, schedule):
    """Give the published sampler a float64 table of the same betas, so that its formulas are what is compared."""
    scheduler.betas = schedule.betas()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.one
