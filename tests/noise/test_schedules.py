"""Properties of every schedule, and known values."""

import math
import warnings

import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import X0, Eps
from diffusion.loss.weights import ELBO
from diffusion.noise import (
    VP,
    ConstantBeta,
    Cosine,
    Discrete,
    Linear,
    Quadratic,
    ScaledLinear,
    Schedule,
    Sigmoid,
    SubVP,
    Tabulated,
    forward_var,
    posterior_var,
)
from diffusion.noise.discrete import SNAP
from diffusion.support.specs import build, concrete, spec

ALL = sorted(concrete(Schedule, "diffusion"), key=lambda c: c.__name__)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_every_schedule_is_found():
    assert {Linear, Quadratic, Sigmoid, Cosine} <= set(ALL)


@pytest.mark.filterwarnings("ignore:ScaledLinear. alpha-bar")
@pytest.mark.parametrize("kind", ALL)
def test_snr_falls_and_time_inverts_log_snr(kind):
    schedule = kind()
    t = torch.linspace(schedule.t_min, 1, 997, dtype=torch.float64)
    level = schedule.level(t)
    assert (level.log_snr.diff() < 0).all()
    snapped = 1.1 * SNAP / schedule.T if schedule.T else 1e-9  # discrete times this near to a level snap to it
    torch.testing.assert_close(schedule.time(level.log_snr), t, rtol=0, atol=snapped)


@pytest.mark.filterwarnings("ignore:ScaledLinear. alpha-bar")
@pytest.mark.parametrize("kind", [*sorted(concrete(Discrete, "diffusion"), key=lambda k: k.__name__), VP])
def test_variance_is_preserved(kind):
    level = kind().level(torch.rand(1000, dtype=torch.float64).clamp(min=1e-3))
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(1000).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [2, 10, 100, 500, 1000, 4000])
@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid, Cosine])
def test_schedules_end_in_noise_for_every_T(kind, T):
    """alpha-bar at T stays small because betas are rescaled: fixed betas leave .375 at T = 100."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind(T).alphas[-1] ** 2 < 1e-3


@pytest.mark.parametrize("T, abar", [(100, 0.3636), (200, 0.1324), (500, 0.0064)])
def test_schedules_without_rescaling_warn_of_a_wrong_prior(T, abar):
    with pytest.warns(UserWarning, match="pure noise"):
        end = Linear(T, rescale=False).alphas[-1]
    assert float(end**2) == pytest.approx(abar, rel=0.04)


def test_linear_schedule_has_ddpms_table():
    schedule = Linear()
    betas = schedule.betas()
    assert float(betas[0]) == pytest.approx(1e-4) and float(betas[-1]) == pytest.approx(0.02)
    # log abar_T = sum log(1 - beta), by hand
    log = sum(math.log1p(-(1e-4 + i * (0.02 - 1e-4) / 999)) for i in range(1000))
    assert float(schedule.alphas[-1] ** 2) == pytest.approx(math.exp(log), rel=1e-12)


def test_noise_is_scaled_by_the_root_not_the_variance():
    """At index 50 of T = 500 the short course's noise has standard deviation .233; without the root it is .054."""
    with pytest.warns(UserWarning):
        level = Linear(500, rescale=False).level(f64(51 / 500))
    assert float(level.sigma) == pytest.approx(0.233, abs=2e-3)
    assert float(level.sigma**2) == pytest.approx(0.054, abs=1e-3)


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid, Cosine])
def test_neighbours_have_ddpm_variances(kind):
    schedule = kind()
    betas = schedule.betas()
    i = torch.tensor([1, 2, 57, 500, 998])
    s, t = schedule.level(i.double() / 1000), schedule.level((i + 1).double() / 1000)
    torch.testing.assert_close(forward_var(s, t), betas[i], rtol=1e-9, atol=1e-14)
    tilde = (1 - s.alpha**2) / (1 - t.alpha**2) * betas[i]
    torch.testing.assert_close(posterior_var(s, t), tilde, rtol=1e-9, atol=1e-14)


def test_a_table_of_betas_has_their_products_as_levels():
    """By hand: alpha^2 = .9, .9 * .5 and .9 * .5 * .002; the default is DDPM's table."""
    schedule = Tabulated([0.1, 0.5, 0.998])
    assert schedule.T == 3 and schedule.t_min == pytest.approx(1 / 3)
    level = schedule.level(f64(1, 2, 3) / 3)
    torch.testing.assert_close(level.alpha**2, f64(0.9, 0.45, 0.0009), rtol=1e-12, atol=0)
    torch.testing.assert_close(level.sigma**2, f64(0.1, 0.55, 0.9991), rtol=1e-12, atol=0)
    torch.testing.assert_close(Tabulated().alphas, Linear().alphas, rtol=1e-12, atol=0)
    again = build(spec(schedule))
    assert type(again) is Tabulated and torch.equal(again.alphas, schedule.alphas)


def test_a_table_that_ends_in_a_beta_of_one_ends_without_signal():
    """As a schedule of zero_snr in the form of betas: the table gives the same schedule back."""
    given = Cosine(50, zero_snr=True)
    bar = torch.cat([f64(1.0), given.alphas**2])
    schedule = Tabulated((1 - bar[1:] / bar[:-1]).tolist(), zero_snr=True)
    assert float(schedule.alphas[-1]) == 0
    t = torch.linspace(0.01, 1, 331, dtype=torch.float64)
    torch.testing.assert_close(schedule.level(t).alpha, given.level(t).alpha, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        Tabulated([0.1, 1.0]).alphas  # noqa: B018
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        Tabulated([1.0, 0.1], zero_snr=True).alphas  # noqa: B018
    with pytest.raises(ValueError, match="at least 2 diffusion steps"):
        Tabulated([0.1])


def test_discrete_schedules_are_exact_on_the_table_and_linear_in_log_snr_between():
    schedule = Linear(100)
    i = torch.arange(100)
    level = schedule.level((i + 1).double() / 100)
    assert torch.equal(level.alpha, schedule.alphas) and torch.equal(level.sigma, schedule.sigmas)
    a, mid, b = (schedule.level(f64(t)).log_snr for t in (0.40, 0.405, 0.41))
    assert float(mid) == pytest.approx(float(a + b) / 2, rel=1e-12)


def test_discrete_clock_is_an_integer_index():
    schedule = Linear(1000)
    clock = schedule.clock((torch.arange(1000) + 1).float() / 1000)  # float32 times, as in training
    assert torch.equal(clock.double(), torch.arange(1000).double())


def test_every_index_is_trained_equally_often():
    schedule = Linear(50)
    u = (torch.arange(5000).double() + 0.5) / 5000
    index = schedule.index(schedule.quantile(u))
    assert torch.equal(torch.bincount(index.long(), minlength=50), torch.full((50,), 100))


def test_cosine_clips_betas_and_alpha_bar_never_rises():
    schedule = Cosine(1000)
    abar = schedule.alphas**2
    assert (abar.diff() < 0).all()
    assert float(schedule.betas().max()) == pytest.approx(0.999)
    f = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    assert float(abar[499]) == pytest.approx(f(0.5) / f(0), rel=1e-9)


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid, Cosine])
@pytest.mark.parametrize("T", [1, 0, -3])
def test_discrete_schedules_reject_fewer_than_two_steps(kind, T):
    with pytest.raises(ValueError, match="at least 2"):
        kind(T)


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid, Cosine, ConstantBeta, ScaledLinear])
def test_zero_snr_removes_all_signal_and_keeps_alpha_0(kind):
    """alpha_T = 0, alpha_0 is unchanged, and targets that divide by alpha are rejected."""
    plain, schedule = kind(), kind(zero_snr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plain.alphas[-1] > 0
    assert schedule.alphas[-1] == 0 and schedule.sigmas[-1] == 1
    assert float(schedule.alphas[0]) == pytest.approx(float(plain.alphas[0]), rel=1e-12)
    shrunk = (plain.alphas - plain.alphas[-1]) / (plain.alphas[0] - plain.alphas[-1]) * plain.alphas[0]
    torch.testing.assert_close(schedule.alphas, shrunk, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="divides by alpha"):
        Denoiser(torch.nn.Identity(), schedule, Eps())


def test_an_alpha_within_rounding_of_0_is_no_signal():
    """cos(pi / 2) is 6e-17 in float64; x_0 from eps would be noise times 1.6e16."""

    class Quarter(Schedule):
        def scales(self, t):
            return (t * torch.pi / 2).cos(), (t * torch.pi / 2).sin()

    assert 0 < Quarter().scales(f64(1.0))[0] < 1e-16
    with pytest.raises(ValueError, match="Eps divides by alpha, which is 0 to rounding at t = 1 for Quarter"):
        Denoiser(torch.nn.Identity(), Quarter(), Eps())


def test_scaled_linear_and_constant_beta_tables():
    schedule = ScaledLinear()
    with pytest.warns(UserWarning, match="alpha-bar at T = 1000 is 0.0047, above 1e-3.*pure noise"):
        assert schedule.level(f64(1.0)).alpha > 0
    betas = schedule.betas()
    assert betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.012])
    assert ConstantBeta(500).alphas[-1] == pytest.approx((1 - 0.02) ** 250, rel=1e-9)


def test_betas_outside_the_unit_interval_are_rejected():
    class Wild(Discrete):
        def betas(self):
            return torch.linspace(0.5, 1.5, self.T)

    for schedule in (Wild(10), Linear(beta_start=0.0)):
        with pytest.raises(ValueError, match=f"{type(schedule).__name__}: betas must lie in"):
            schedule.level(f64(0.5))
        with pytest.raises(ValueError, match="lower beta_end or raise T"):  # so no model is built with it
            Denoiser(torch.nn.Identity(), schedule, X0())


def test_a_discrete_schedule_may_set_its_fields_after_the_base_class():
    """The tables are computed once, on first use, from all fields."""

    class Late(Discrete):
        def __init__(self, T: int = 100, beta: float = 0.2) -> None:
            super().__init__(T)
            self.beta, self.calls = beta, 0

        def betas(self):
            self.calls += 1
            return torch.full((self.T,), self.beta)

    schedule = Late(50)
    assert schedule.calls == 0
    torch.testing.assert_close(schedule.level(f64(0.1)).alpha, f64(0.8**2.5), rtol=1e-7, atol=0)
    schedule.time(f64(0.0)), schedule.sde(f64(0.5))
    assert schedule.calls == 1


def test_tables_computed_in_inference_mode_are_usable_in_training():
    """Inference tensors cannot take part in a backward pass; the tables are ordinary tensors."""
    schedule = Linear(50)
    with torch.inference_mode():
        schedule.level(f64(0.5))
    assert not schedule.alphas.is_inference()
    x = f64(1.0).requires_grad_()
    (x * schedule.level(f64(0.5)).alpha).sum().backward()


ZERO = [k for k in ALL if issubclass(k, Discrete) and k is not Discrete]


def probes(schedule):
    """Times on the table and off it, and log-SNRs beyond both ends."""
    on = torch.arange(1, (schedule.T or 500) + 1).double() / (schedule.T or 500)
    t = torch.cat([on, torch.linspace(0.1 * schedule.t_min, 1, 1777, dtype=torch.float64)])
    log_snr = schedule.level(t).log_snr
    return t, log_snr, torch.cat([log_snr, f64(-90, 90, 800)])


OURS = [k for k in ALL if k.__module__.startswith("diffusion.")]


def of_length(kind, T, **options):
    """A discrete schedule of T levels; a table is DDPM's, rescaled."""
    return kind(Linear(T).betas().tolist() if kind is Tabulated else T, **options)


@pytest.mark.filterwarnings("ignore:ScaledLinear. alpha-bar")
@pytest.mark.parametrize("kind, zero_snr", [(k, False) for k in OURS] + [(k, True) for k in ZERO])
def test_time_in_closed_form_is_the_bisection(kind, zero_snr, monkeypatch):
    """Compared without rounding to the table, where log-SNR jumps."""
    assert kind.exact_time is not Schedule.exact_time
    schedules = [kind(), of_length(kind, 20)] if issubclass(kind, Discrete) else [kind()]
    if zero_snr:
        schedules = [kind(zero_snr=True), of_length(kind, 20, zero_snr=True)]
    for schedule in schedules:
        t, inside, log_snr = probes(schedule)
        snapped = SNAP / schedule.T if schedule.T else 0.0
        bisected = schedule.numerical_time(log_snr)
        torch.testing.assert_close(schedule.time(log_snr), bisected, rtol=0, atol=snapped + 1e-9)
        monkeypatch.setattr("diffusion.noise.discrete.SNAP", 0.0)
        torch.testing.assert_close(schedule.time(log_snr), schedule.numerical_time(log_snr), rtol=0, atol=1e-9)
        torch.testing.assert_close(schedule.time(inside), t, rtol=0, atol=snapped + 1e-9)
        monkeypatch.undo()
        assert schedule.time(f64(-math.inf, math.inf)).tolist() == pytest.approx([1, 0], abs=1e-15)
        assert schedule.time(log_snr.reshape(-1, 1)).shape == (len(log_snr), 1) and schedule.time(log_snr[0]).ndim == 0


@pytest.mark.parametrize("kind", ZERO)
def test_zero_snr_has_linear_alpha_in_the_last_interval(kind):
    """alpha falls linearly to 0, f and g^2 match, and no weight is nan."""
    schedule = of_length(kind, 50, zero_snr=True)
    t = f64(0.985, 0.99, 0.995)
    level = schedule.level(t)
    torch.testing.assert_close(level.alpha, schedule.alphas[-2] * f64(0.75, 0.5, 0.25), rtol=1e-9, atol=0)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, f64(1, 1, 1))
    f = -1 / (1 - t)  # alpha'/alpha, alpha in proportion to 1 - t
    torch.testing.assert_close(torch.stack(schedule.sde(t)), torch.stack([f, -2 * f]), rtol=1e-9, atol=0)
    rate = forward_var(schedule.level(t - 5e-7), schedule.level(t + 5e-7)) / 1e-6
    torch.testing.assert_close(rate, -2 * f, rtol=1e-3, atol=0)
    weight = ELBO()(schedule.level(f64(0.5, 0.98, 0.99, 1)), Eps(), schedule)
    assert weight.isfinite().all() and weight[-1] == 0 and (weight[:-1] > 0).all()


def test_new_scales_do_not_inherit_an_old_inverse():
    """A subclass that changes `scales` alone gets the bisection and the derivatives, not its parent's closed forms."""

    class Part(VP):
        def scales(self, t):
            return super().scales(0.4 + 0.6 * t)

    class Coarse(Linear):
        def scales(self, t):
            return VP().scales(t)

    t = f64(0.1, 0.55, 0.9)
    for schedule, beta in ((Part(), 0.6 * (0.1 + 19.9 * (0.4 + 0.6 * t))), (Coarse(), 0.1 + 19.9 * t)):
        torch.testing.assert_close(schedule.time(schedule.level(t).log_snr), t, rtol=0, atol=1e-9)
        torch.testing.assert_close(schedule.sde(t)[1], beta, rtol=1e-9, atol=0)


def test_a_closed_form_is_used_for_the_scales_it_was_written_for():
    """Inherited with its scales, used beside new ones, and ignored where only the scales are new."""

    class Same(VP):
        pass

    class Shifted(VP):
        def scales(self, t):
            return super().scales(t / 2)

        def exact_time(self, log_snr):
            return 2 * super().exact_time(log_snr)

    class Further(Shifted):
        def scales(self, t):
            return VP.scales(self, t / 3)

    class Refuses(VP):
        def numerical_time(self, log_snr):
            raise AssertionError("the closed form holds")

    t, log_snr = f64(0.3, 0.9), VP().level(f64(0.3, 0.9)).log_snr
    torch.testing.assert_close(Refuses().time(log_snr), t)
    assert torch.equal(Same().time(log_snr), VP().exact_time(log_snr))
    shifted = Shifted()
    assert torch.equal(shifted.time(log_snr), shifted.exact_time(log_snr))
    for schedule in (shifted, Further()):
        torch.testing.assert_close(schedule.time(schedule.level(t).log_snr), t, rtol=0, atol=1e-9)
    assert Linear.exact_sde is Discrete.exact_sde and SubVP.exact_time is not VP.exact_time
