"""Continuous schedules: f and g^2 against closed forms, limits and grids."""

import math

import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import EDM, X0, Eps, Score, V, Velocity
from diffusion.noise import VE, VP, Cosine, Flow, Karras, Linear, SubVP, forward_var

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
BETA = 0.1 + 19.9 * T
INTEGRAL = 0.1 * T + 19.9 * T**2 / 2


@pytest.mark.parametrize("schedule, f, g2", [
    (VP(), -BETA / 2, BETA),
    (SubVP(), -BETA / 2, BETA * (1 - torch.exp(-2 * INTEGRAL))),
    (VE(), 0 * T, 2 * (0.01 * 5000**T) ** 2 * math.log(5000)),
    (Flow(), -1 / (1 - T), 2 * T / (1 - T)),
    (Karras(), 0 * T, None),
], ids=lambda v: type(v).__name__)  # fmt: skip
def test_f_and_g2_match_their_closed_forms(schedule, f, g2):
    if g2 is None:  # 2 sigma sigma', sigma = (a + t b)^7
        a = 0.002 ** (1 / 7)
        b = 80 ** (1 / 7) - a
        g2 = 2 * (a + T * b) ** 7 * 7 * b * (a + T * b) ** 6
    torch.testing.assert_close(schedule.sde(T)[0], f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(schedule.sde(T)[1], g2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), Karras(), Flow(), Cosine()])
def test_g2_is_the_rate_of_the_forward_variance(schedule):
    """Var[x_{t+h} | x_t] / h -> g^2."""
    h = 1e-6
    t = T + 1e-5  # within an interval of the table
    rate = forward_var(schedule.level(t - h / 2), schedule.level(t + h / 2)) / h
    torch.testing.assert_close(rate, schedule.sde(t)[1], rtol=2e-4, atol=1e-6)


def test_ddpm_is_vp_in_the_limit():
    """1,000 linear betas are beta(t) / 1000: alpha agrees to a few parts in a thousand."""
    a, b = Linear(1000).scales(T)[0], VP(0.1, 20).scales(T)[0]
    torch.testing.assert_close(a, b, rtol=0.03, atol=2e-4)


def test_ve_on_a_grid_is_geometric():
    sigma = VE(0.01, 1).scales(torch.arange(0, 11).double() / 10)[1]
    torch.testing.assert_close(sigma[1:] / sigma[:-1], torch.full((10,), 100**0.1).double())


def test_karras_schedule_has_edms_levels_and_clock():
    """EDM eq. 5 with 18 steps from 80 to .002."""
    t = torch.linspace(1, 0, 18, dtype=torch.float64)
    i = torch.arange(18).double()
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(Karras().scales(t)[1], expected)
    torch.testing.assert_close(Karras().clock(t), expected.log() / 4)


def test_subvp_is_never_noisier_than_vp():
    assert (SubVP().scales(T)[1] < VP().scales(T)[1]).all() and torch.equal(SubVP().scales(T)[0], VP().scales(T)[0])


@pytest.mark.parametrize("target", [Eps(), Score()])
def test_targets_that_divide_by_alpha_reject_schedules_without_signal(target):
    with pytest.raises(ValueError, match="divides by alpha"):
        Denoiser(torch.nn.Identity(), Flow(), target)


def test_other_targets_are_finite_at_pure_noise():
    t = Flow().level(torch.tensor(1.0).double())
    x = torch.randn(3, 1, 2, 2)
    for target in (V(), X0(), Velocity(), EDM()):
        assert target.x0(x, target.of(0 * x, x, t), t).abs().max() < 1e-6
