"""Weights are defined once, for x_0: the loss of a prediction is equal for eps, x0 and v."""

import math

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import EDM, X0, Eps, V, Velocity
from diffusion.loss.objective import Objective
from diffusion.loss.weights import (
    ELBO,
    L1,
    MSE,
    P2,
    Constant,
    Distance,
    EDMWeight,
    Huber,
    MinSNR,
    SigmoidWeight,
    SoftMinSNR,
    Unit,
    VelocityWeight,
    Weight,
)  # fmt: skip
from diffusion.noise import VP, Cosine, Flow, Linear
from diffusion.noise.draws import StepDraws
from diffusion.support.specs import concrete

WEIGHTS = sorted(concrete(Weight, "diffusion.loss"), key=lambda c: c.__name__)


class Saying(nn.Module):
    """Outputs the same prediction of x_0 for any target."""

    def __init__(self, target, schedule):
        super().__init__()
        self.target, self.schedule = target, schedule

    def forward(self, x, clock, y=None, keep=None):
        t = self.schedule.level((clock.double() + 1) / 1000).like(x)
        scaled = x / self.target.c_in(t)
        guess = torch.tanh(0.8 * scaled.roll(1, -1))
        return self.target.of(guess, (scaled - t.alpha * guess) / t.sigma, t)


def loss(target, weight, distance=MSE(), schedule=Cosine()):
    x0 = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    draws = StepDraws(0, 0, 0)
    noise = lambda x: draws.normal(x).double()  # noqa: E731
    return float(Objective(weight=weight, distance=distance)(
        Denoiser(Saying(target, schedule), schedule, target), x0, noise=noise, uniform=draws.uniform
    ).loss)  # fmt: skip


@pytest.mark.parametrize("distance", [MSE(), L1(), Huber()])
@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w is not Unit])
def test_loss_of_a_prediction_does_not_depend_on_the_target(weight, distance):
    losses = [loss(target, weight(), distance) for target in (Eps(), X0(), V(), EDM())]
    assert losses[0] > 0 and losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_unit_weight_is_each_targets_own_error():
    """eps: snr, x0: 1, v: snr + 1 (alpha^2 + sigma^2 = 1), EDM: 1 / c_out^2."""
    schedule = Cosine()
    t = schedule.level(torch.tensor([0.1, 0.5, 0.9]).double())
    snr = t.log_snr.exp()
    for target, expected in ((Eps(), snr), (X0(), torch.ones(3)), (V(), snr + 1)):
        torch.testing.assert_close(Unit()(t, target, schedule), expected.double())
    edm = EDM(0.5)
    torch.testing.assert_close(Unit()(t, edm, schedule), EDMWeight(0.5)(t, edm, schedule))  # EDM's own choice


def test_velocity_weight_is_the_unit_weight_of_the_velocity_and_limited():
    """In Flow 1 / sigma^2 of the error of x_0, at most 20^2; on other schedules the same function of the SNR."""
    t = Flow().level(torch.tensor([0.01, 0.05, 0.3, 0.9, 1.0]).double())
    torch.testing.assert_close(VelocityWeight()(t, X0(), Flow()), (1 / t.sigma).clamp(max=20).square())
    torch.testing.assert_close(VelocityWeight(1e9)(t, X0(), Flow()), Unit()(t, Velocity(), Flow()))
    t = Cosine().level(torch.tensor([0.2, 0.8]).double())
    torch.testing.assert_close(VelocityWeight()(t, V(), Cosine()), Unit()(t, Velocity(), Cosine()))
    with pytest.raises(ValueError, match="VelocityWeight: most must be at least 1, got 0.5"):
        VelocityWeight(0.5)


def test_weights_match_values_by_hand():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0]).double()
    assert Constant().of(snr).tolist() == snr.tolist()
    assert MinSNR(5).of(snr).tolist() == pytest.approx([0.01, 1, 5, 5])
    assert SoftMinSNR(5).of(snr).tolist() == pytest.approx([s * 5 / (s + 5) for s in snr.tolist()])
    assert P2(1, 2).of(snr).tolist() == pytest.approx([s / (1 + s) ** 2 for s in snr.tolist()])
    assert EDMWeight(0.5).of(snr).tolist() == pytest.approx([s + 4 for s in snr.tolist()])
    logistic = [s / (1 + math.exp(math.log(s) - 2)) for s in snr.tolist()]
    assert SigmoidWeight(2).of(snr).tolist() == pytest.approx(logistic)


def test_elbo_integrates_snr():
    """With a constant squared error of x_0 the bound is (snr(0) - snr(1)) / 2 times it."""
    schedule = VP()
    t = torch.linspace(0.2, 1, 20001, dtype=torch.float64)
    w = ELBO()(schedule.level(t), Eps(), schedule)
    snr = schedule.level(t[[0, -1]]).log_snr.exp()
    assert float(torch.trapezoid(w, t)) == pytest.approx(float(snr[0] - snr[1]) / 2, rel=1e-6)
    linear = Linear()
    i = torch.arange(1, 1000).double()
    w = ELBO()(linear.level((i + 0.5 + 0.5) / 1000), Eps(), linear)
    assert (w > 0).all()


def test_distances_match_values_by_hand():
    error = torch.tensor([-2.0, -0.05, 0.0, 0.1, 1.0])
    assert MSE()(error).tolist() == pytest.approx([4, 0.0025, 0, 0.01, 1])
    assert L1()(error).tolist() == pytest.approx([2, 0.05, 0, 0.1, 1])
    assert Huber(0.1)(error).tolist() == pytest.approx([0.195, 0.00125, 0, 0.005, 0.095])
    assert {MSE, L1, Huber} <= concrete(Distance)
    with pytest.raises(ValueError, match="positive"):
        Huber(0)
