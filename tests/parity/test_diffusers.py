"""Parity with diffusers, on shared noise and a fixed non-linear "network": relative error <= 1e-5."""

import inspect
import textwrap

import numpy as np
import pytest
import torch

from diffusion.denoiser import predict
from diffusion.denoiser.targets import Velocity
from diffusion.guidance import Clamp
from diffusion.noise import Cosine, Flow, Karras, Linear, Quadratic, Sigmoid
from diffusion.noise.grids import times
from diffusion.samplers import (
    DDIM,
    DDPM,
    DEIS,
    DPM2,
    DPMSolver,
    DPMSolverSingle,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
)

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
def test_schedule_tables_match_diffusers(name):
    schedule, other = SCHEDULES[name](), diffusers.DDPMScheduler(1000, beta_schedule=name)
    np.testing.assert_allclose(schedule.betas(), other.betas.double(), rtol=RTOL)
    abar = torch.cumprod(1 - other.betas.double(), 0)
    # In float32 their last cosine beta, .999, leaves 1 - beta with an error of 1.3e-5: that entry by its beta alone.
    np.testing.assert_allclose((schedule.alphas**2)[:-1], abar[:-1], rtol=RTOL)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_matches_diffusers(name, variance, clamp, x):
    """Against a table in float64: theirs is recomputed from our betas, since float32 betas alone cost 1e-4."""
    schedule = SCHEDULES[name]()
    scheduler = diffusers.DDPMScheduler(
        trained_betas=schedule.betas().numpy(), variance_type=f"fixed_{variance}", clip_sample=clamp
    )
    upcast(scheduler, schedule)
    close(ours(DDPM(1000, variance), schedule, x, 1, clamp), theirs(scheduler, x, 1, 1000))


@pytest.mark.parametrize("steps", [1000, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_with_learned_variance_matches_diffusers(name, steps, x):
    """2C channels, the second half interpolating the log-variance: "learned_range" in diffusers.

    On leading grids, which end at index 0: in a last step from any other index theirs adds noise of a variance between
    1e-20 and beta, although the chain has reached the image.
    """
    schedule, sampler = SCHEDULES[name](), DDPM(steps, "learned", "leading")
    scheduler = diffusers.DDPMScheduler(
        trained_betas=schedule.betas().numpy(), variance_type="learned_range", clip_sample=False,
        timestep_spacing="leading",
    )  # fmt: skip
    upcast(scheduler, schedule)

    def raw(x, index):
        return torch.tanh(x.roll(1, -2) + np.sin(index / 50))

    def denoise(x, t):
        index = float(schedule.clock(t.t))
        return predict(x, (x - t.sigma * network(x, index)) / t.alpha, t, raw(x, index))

    generator, other = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    found = sampler.sample(denoise, x, schedule, lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    scheduler.set_timesteps(steps)
    for index in scheduler.timesteps:
        both = torch.cat([network(x, float(index)), raw(x, float(index))], dim=1)
        x = scheduler.step(both, index, x, generator=other).prev_sample
    close(found, x)


@pytest.mark.parametrize("steps", [10, 50, 250])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", ["trailing", "leading"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_matches_diffusers(name, grid, eta, steps, x):
    schedule = SCHEDULES[name]()
    scheduler = diffusers.DDIMScheduler(
        trained_betas=schedule.betas().numpy(), timestep_spacing=grid, clip_sample=False, set_alpha_to_one=True
    )
    upcast(scheduler, schedule)
    close(ours(DDIM(steps, eta, grid), schedule, x, 2), theirs(scheduler, x, 2, steps, eta=eta))


@pytest.mark.parametrize("grid", ["trailing", "leading"])
def test_respaced_ddpm_matches_diffusers(grid, x):
    schedule = Linear()
    scheduler = diffusers.DDPMScheduler(
        trained_betas=schedule.betas().numpy(), timestep_spacing=grid, clip_sample=False
    )
    upcast(scheduler, schedule)
    close(ours(DDPM(100, "small", grid), schedule, x, 3), theirs(scheduler, x, 3, 100))


def upcast(scheduler, schedule):
    """Give the published sampler a float64 table of the same betas, so that only its formulas are compared."""
    scheduler.betas = schedule.betas()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.one


# The samplers below are formulated in sigma / alpha there: their x is x / alpha ("hat"), of any scale.


def tables(scheduler, schedule, steps, last=0.0):
    """set_timesteps, then its float32 table of sigma / alpha again in float64."""
    scheduler.set_timesteps(steps)
    index = scheduler.timesteps.round().long()  # Heun's has all but the first twice already
    scheduler.sigmas = torch.cat([schedule.sigmas[index] / schedule.alphas[index], torch.tensor([last]).double()])


def walk(scheduler, x, seed, hat, monkeypatch):
    """Their images, one per call of step. `hat`: they store x / alpha, and scale it for the network themselves."""
    generator, images = torch.Generator().manual_seed(seed), []
    x = x * (scheduler.sigmas[0] ** 2 + 1).sqrt() if hat else x  # x / alpha
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # they cast x to float32 in some steps, which costs 1e-5
        random = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for index in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, index) if hat else x
            x = scheduler.step(network(seen, float(index)), index, x, **random).prev_sample
            images.append(x)
    return images


def compare(sampler, schedule, scheduler, x, monkeypatch, hat, upto=None):
    """Compare the walk, or its images before number `upto` (the rest differs on purpose); ours / alpha if hat."""

    def denoise(x, t):
        eps = network(x, float(schedule.clock(t.t)))
        return predict(x, (x - t.sigma * eps) / t.alpha, t)

    generator = torch.Generator().manual_seed(4)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    frames = list(sampler.iterate(denoise, x, schedule, noise))
    mine = [f.x / f.t.alpha if hat else f.x for f in frames]
    images = walk(scheduler, x, 4, hat, monkeypatch)
    if len(images) > len(mine):  # Heun: two calls per step except the last
        images = [*images[1::2], images[-1]]
    assert len(mine) == len(images)
    for a, b in list(zip(mine, images, strict=True))[:upto]:
        close(a, b)


def linear(kind, **options):
    schedule = Linear()
    scheduler = kind(trained_betas=schedule.betas().numpy(), timestep_spacing="trailing", **options)
    upcast(scheduler, schedule)
    return schedule, scheduler


@pytest.mark.parametrize("steps", [10, 50])
def test_euler_matches_diffusers(steps, x, monkeypatch):
    schedule, scheduler = linear(diffusers.EulerDiscreteScheduler)
    tables(scheduler, schedule, steps)
    compare(Euler(steps), schedule, scheduler, x, monkeypatch, hat=True)


@pytest.mark.parametrize("steps", [10, 50])
def test_euler_ancestral_matches_diffusers(steps, x, monkeypatch):
    schedule, scheduler = linear(diffusers.EulerAncestralDiscreteScheduler)
    tables(scheduler, schedule, steps)
    compare(EulerAncestral(steps), schedule, scheduler, x, monkeypatch, hat=True)


@pytest.mark.parametrize("steps", [10, 50])
def test_heun_matches_diffusers(steps, x, monkeypatch):
    schedule, scheduler = linear(diffusers.HeunDiscreteScheduler)
    tables(scheduler, schedule, steps)
    compare(Heun(steps), schedule, scheduler, x, monkeypatch, hat=True)


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_matches_diffusers(order, sde, steps, x, monkeypatch):
    """From 15 steps on: below, theirs also lowers the order of the penultimate step."""
    schedule, scheduler = linear(
        diffusers.DPMSolverMultistepScheduler, solver_order=order, final_sigmas_type="zero",
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
    )  # fmt: skip
    tables(scheduler, schedule, steps)
    if order == 3:
        # Their D2 is half of h^2 x_0'' (a divided difference without its factor 2), which leaves order 2, and for
        # the SDE its coefficient has the sign of the 0.5 wrong. With these two set right, the rest must agree.
        source = textwrap.dedent(inspect.getsource(type(scheduler).multistep_dpm_solver_third_order_update))
        assert "D2 = (1.0 / (r0 + r1))" in source
        source = source.replace("D2 = (1.0 / (r0 + r1))", "D2 = (2.0 / (r0 + r1))")
        wrong = "(1.0 - torch.exp(-2.0 * h) - 2.0 * h) / (2.0 * h) ** 2 - 0.5"
        assert not sde or wrong in source
        source = source.replace(wrong, "(1.0 - torch.exp(-2.0 * h) - 2.0 * h) / (2.0 * h) ** 2 + 0.5")
        scope = dict(vars(inspect.getmodule(type(scheduler))))
        exec(source, scope)
        right = scope["multistep_dpm_solver_third_order_update"]
        scheduler.multistep_dpm_solver_third_order_update = right.__get__(scheduler)
    compare(DPMSolver(steps, order, sde), schedule, scheduler, x, monkeypatch, hat=False)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_matches_diffusers(order, steps, x, monkeypatch):
    """Theirs lowers the order of the penultimate step to 2, which a sampler that receives two levels cannot do."""
    schedule, scheduler = linear(diffusers.UniPCMultistepScheduler, solver_order=order, final_sigmas_type="zero")
    tables(scheduler, schedule, steps)
    compare(UniPC(steps, order), schedule, scheduler, x, monkeypatch, hat=False, upto=-2 if order == 3 else None)


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_matches_diffusers(order, steps, x, monkeypatch):
    """Theirs ends at index 0, not at the clean level: equal up to the previous step."""
    schedule, scheduler = linear(diffusers.DEISMultistepScheduler, solver_order=order)
    tables(scheduler, schedule, steps, last=float(schedule.sigmas[0] / schedule.alphas[0]))
    compare(DEIS(steps, order), schedule, scheduler, x, monkeypatch, hat=False, upto=-1)


@pytest.mark.parametrize("steps", [10, 50])
def test_flow_matching_euler_matches_diffusers(steps, x, monkeypatch):
    """Their network outputs eps - x_0; our Euler, in sigma / alpha, takes the same straight steps."""
    schedule, scheduler = Flow(), diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    scheduler.sigmas = torch.tensor([*(1 - k / steps for k in range(steps)), 0.0], dtype=torch.float64)
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    target = Velocity()
    mine = Euler(steps).sample(lambda x, t: predict(x, target.x0(x, network(x, 1000 * float(t.t)), t), t), x, schedule)
    close(mine, walk(scheduler, x, 0, False, monkeypatch)[-1])


def test_samplers_match_k_diffusion(x):
    """Including samplers that diffusers lacks in the same form: midpoint DPM2, churn, and 2S."""
    sampling = pytest.importorskip("k_diffusion.sampling", reason="optional: pip install k-diffusion")
    schedule = Karras(0.02, 20.0)
    levels = [schedule.level(t) for t in times("trailing", schedule, 12)]
    sigmas = torch.stack([*(t.sigma for t in levels), torch.zeros((), dtype=torch.float64)])
    start = x * schedule.prior_std

    def x0(x, sigma):
        return x - sigma * network(x / (1 + sigma**2) ** 0.5, float(sigma))

    def denoise(x, t):
        return predict(x, x0(x / t.alpha, t.ratio), t)

    def model(x, sigma):
        return x0(x, sigma[0])

    for ours, theirs in ((Euler(12), sampling.sample_euler), (DPMSolver(12), sampling.sample_dpmpp_2m)):
        close(ours.sample(denoise, start, schedule), theirs(model, start, sigmas, disable=True))
    torch.manual_seed(2)
    ancestral = sampling.sample_euler_ancestral(model, start, sigmas, eta=0.7, disable=True)
    torch.manual_seed(2)
    close(EulerAncestral(12, 0.7).sample(denoise, start, schedule), ancestral)
    close(DPM2(12).sample(denoise, start, schedule), sampling.sample_dpm_2(model, start, sigmas, disable=True))
    torch.manual_seed(1)
    churned = sampling.sample_heun(model, start, sigmas, s_churn=3.0, s_tmax=15.0, s_noise=1.01, disable=True)
    torch.manual_seed(1)
    torch.randn_like(start)  # theirs also draws in the first step, where 20 is above 15
    close(Heun(12, churn=3, churn_max=15, churn_noise=1.01).sample(denoise, start, schedule), churned)
    single = sampling.sample_dpmpp_2s_ancestral(model, start, sigmas, eta=0.0, disable=True)
    close(DPMSolverSingle(12).sample(denoise, start, schedule), single)
