"""Steering by a CondFn, against exact posteriors."""

import pytest
import torch
from torch import nn

from diffusion.bench.analytic import Gaussian
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import V
from diffusion.guidance import ClassifierFree, Likelihood, Steer
from diffusion.noise import VE, VP, Flow
from diffusion.samplers import DPMSolver

MEAN, STD, NOISE = 0.3, 0.4, 0.25
WISH = torch.tensor([[[0.9, -0.5, 0.1]]], dtype=torch.float64)
TIMES = [0.02, 0.3, 0.7, 1.0]


class Best(nn.Module):
    """The ideal network of Gaussian data, which receives the clock of its schedule and outputs v."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, clock, y=None, keep=None):
        t = self.schedule.level(clock[0].double() / 1000)
        pred = Gaussian(MEAN, STD)(x, t)
        return V().of(pred.x0, pred.eps, t)


class Measured:
    """The gradient of log p(y | x_t), y = x_0 + NOISE n, as a function of the predicted x_0."""

    def __call__(self, x0, t):
        var = STD**2 * t.sigma**2 / (t.alpha**2 * STD**2 + t.sigma**2)
        return (WISH - x0) / (NOISE**2 + var)


class Red(Likelihood):
    """The first pixel at 1."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def log_p(self, x0, t):
        return -self.weight * (x0[..., 0] - 1).square().flatten(1).sum(1)


def posterior(t, x):
    """The score of p_t(x | y): the data given the measurement are Gaussian."""
    var = 1 / (1 / STD**2 + 1 / NOISE**2)
    mean = var * (MEAN / STD**2 + WISH / NOISE**2)
    return Gaussian(mean, var**0.5).score(x, t)


@pytest.mark.parametrize("each", [False, True], ids=["one level", "a level per image"])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("through", ["guess", "network"])
@pytest.mark.parametrize("schedule", [VP(), VE(), Flow()], ids=lambda s: type(s).__name__)
def test_steering_by_a_measurement_gives_the_posterior_score(schedule, through, time, each):
    time = 0.98 if time == 1 and type(schedule) is Flow and through == "network" else time  # alpha = 0 at 1
    x = torch.randn(4, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = Denoiser(Best(schedule), schedule, V())
    schedule_clock = schedule.clock
    schedule.clock = lambda t: 1000 * t  # the input of Best
    t = schedule.level(torch.full((4,) if each else (), time, dtype=torch.float64))
    with torch.no_grad():
        pred = Steer(Measured(), through=through, std=STD)(denoiser, Condition())(x, t)
    schedule.clock = schedule_clock
    t = t.like(x)
    torch.testing.assert_close(-pred.eps / t.sigma, posterior(t, x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(t.alpha * pred.x0 + t.sigma * pred.eps, x)


def test_steered_sampling_reaches_the_posterior():
    """Whole walks end in the posterior, beyond the exact score at one level."""
    var = 1 / (1 / STD**2 + 1 / NOISE**2)
    mean = var * (MEAN / STD**2 + WISH / NOISE**2)
    z = torch.randn(500, 1, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoise = Steer(Measured(), std=STD)(Denoiser(Best(VP()), VP(), V()), Condition())
    x = DPMSolver(40, grid="log_snr").sample(denoise, (z - z.mean(0)) / z.std(0), VP())
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.std(0), torch.full_like(WISH, var**0.5), rtol=0.03, atol=0)


def test_steer_is_off_at_scale_zero_and_linear_in_scale(setting):
    x, t = setting.x, setting.level(0.4)
    base = ClassifierFree(2)
    plain = base(setting.denoiser, setting.cond)(x, t).x0
    assert torch.equal(Steer(Red(), 0, guidance=base)(setting.denoiser, setting.cond)(x, t).x0, plain)
    one, three = (Steer(Red(), s, guidance=base)(setting.denoiser, setting.cond)(x, t).x0 - plain for s in (1, 3))
    torch.testing.assert_close(three, 3 * one)
    var = 0.25 * t.sigma**2 / (0.25 * t.alpha**2 + t.sigma**2)
    torch.testing.assert_close(one[..., 0], var * 2 * (1 - plain[..., 0]))
    assert not one[..., 1].any()


def test_steering_through_the_network_moves_correlated_pixels(setting):
    """In a mixture the pixels are dependent: the covariance moves both, and is sigma^2 / alpha d x0 / d x."""
    x, t = setting.x, setting.level(0.4)
    plain = setting.unconditional(x, t).x0
    push = Steer(Red(), through="network")(setting.unconditional, Condition())(x, t).x0 - plain
    g = Red()(plain, t)
    step, columns = 1e-5, []
    for k in range(2):
        e = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
        e[..., k] = step
        slope = (setting.unconditional(x + e, t).x0 - setting.unconditional(x - e, t).x0) / (2 * step)
        columns.append((slope * g).flatten(1).sum(1))
    expected = (t.sigma**2 / t.alpha * torch.stack(columns, 1)).reshape(x.shape)
    torch.testing.assert_close(push, expected, rtol=1e-6, atol=1e-8)
    assert float(push[..., 1].abs().max()) > 0.01


def test_steer_without_signal():
    """At alpha = 0, "network" adds nothing, and "guess" the full shift for data of that spread."""
    schedule, x = Flow(), torch.randn(4, 1, 1, 3, dtype=torch.float64)
    t = schedule.level(torch.ones((), dtype=torch.float64))
    denoiser = Denoiser(Best(schedule), schedule, V())
    plain = denoiser(x, t).x0
    assert torch.equal(Steer(Red(), through="network")(denoiser, Condition())(x, t).x0, plain)
    pushed = Steer(Red(), std=STD)(denoiser, Condition())(x, t).x0
    torch.testing.assert_close(pushed[..., 0] - plain[..., 0], STD**2 * 2 * (1 - plain[..., 0]))


def test_steer_works_in_inference_mode(setting):
    """Validation and previews run in inference mode, where differentiation requires a copy."""
    for through in ("guess", "network"):
        guided = Steer(Red(), through=through)(setting.denoiser, setting.cond)
        expected = guided(setting.x, setting.level(0.4)).x0
        with torch.inference_mode():
            t = setting.world.schedule.level(torch.tensor(0.4, dtype=torch.float64))
            again = guided(setting.x.clone(), t).x0
        torch.testing.assert_close(again.clone(), expected)


def test_steer_rejects_a_cond_fn_of_the_wrong_shape(setting):
    wrong = Steer(lambda x0, t: x0.mean((1, 2, 3)))(setting.denoiser, setting.cond)
    with pytest.raises(ValueError, match=r"the shape of the predicted x_0, \(30, 1, 1, 2\); got \(30,\)"):
        wrong(setting.x, setting.level(0.4))
    for bad in ({"std": 0}, {"through": "net"}):
        with pytest.raises(ValueError, match="expected std > 0 and through 'guess' or 'network'"):
            Steer(Red(), **bad)
