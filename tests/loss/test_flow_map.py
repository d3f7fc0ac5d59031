"""Flow maps: the identities of the target, the oracle, the bias of a chain of levels, and equality with Objective."""

import math
import warnings

import pytest
import torch
from torch import nn

from diffusion import noise
from diffusion.bench.analytic import CLEAN, Gaussian, Map, Mixture
from diffusion.bench.flow_maps import STD, At, Between, Oracle, To, chain, corners, goals
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import V
from diffusion.loss.flow_map import FlowMap, second_leg
from diffusion.loss.intervals import ECT, Anywhere, Clean, Even, Halfway, Strides, Whole, levels
from diffusion.loss.objective import Noised, Objective
from diffusion.loss.paths import FromData, FromSelf, FromTeacher
from diffusion.loss.weights import Unit, Weight
from diffusion.nets import UNet
from diffusion.noise import Cosine, Flow, Karras, LogNormal, Stratified
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM, Consistency
from diffusion.support.specs import build, concrete, spec

DATA = Gaussian(0.3, STD)


def schedules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            k(noise.Linear(200).betas().tolist()) if k is noise.Tabulated else k()
            for k in sorted(concrete(noise.Schedule, "diffusion"), key=lambda k: k.__name__)
        ]


all_schedules = pytest.mark.parametrize("schedule", schedules(), ids=lambda s: type(s).__name__)


# --- the oracle ---------------------------------------------------------------------------------------------


@all_schedules
@pytest.mark.parametrize("data", [DATA, Mixture([-0.6, 0.5], 0.2, [1.0, 2.0])], ids=["gaussian", "mixture"])
def test_flow_map_of_the_oracle_is_exact_for_any_steps_and_schedule(data, schedule):
    """DDIM that tells s, with 1, 2 and 7 steps, ends where the probability flow does."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    start = schedule.level(torch.ones((), dtype=torch.float64))
    x, exact = data.at(z, start), data.at(z, CLEAN)
    scale = 1 + float(start.ratio.clamp(max=1e8)) * 1e-12 / 1e-9  # rounding of x times the flow's steepness
    for steps in (1, 2, 7):
        torch.testing.assert_close(DDIM(steps).sample(Map(data), x, schedule), exact, rtol=1e-6, atol=1e-6 * scale)
    assert (DDIM(7).sample(data, x, schedule) - exact).abs().max() > 1e-3  # which the denoiser does not


def test_gaussian_flow_map_has_its_closed_form():
    """X = alpha_r m + k (x - alpha_t m), x_0 = m + (sigma_t k - sigma_r) (x - alpha_t m) / D, k = sqrt(v_r / v_t)."""
    x, m = torch.linspace(-1, 2, 5, dtype=torch.float64).reshape(-1, 1, 1, 1), 0.3
    t, r = (Flow().level(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.3))
    v = [level.alpha**2 * STD**2 + level.sigma**2 for level in (t, r)]
    k, D = (v[1] / v[0]).sqrt(), r.alpha * t.sigma - t.alpha * r.sigma
    pred = Map(DATA)(x, t.until(r))
    torch.testing.assert_close(pred.jump(r), r.alpha * m + k * (x - t.alpha * m))
    torch.testing.assert_close(pred.x0, m + (t.sigma * k - r.sigma) * (x - t.alpha * m) / D)
    torch.testing.assert_close(t.alpha * pred.x0 + t.sigma * pred.eps, x)


@all_schedules
def test_consistency_sampler_with_the_oracle_has_the_data_as_its_law(schedule):
    """Mean and standard deviation after 1, 2 and 5 steps, from moments: every step is affine."""
    from diffusion.bench import law
    from diffusion.bench.walks import moments

    data = Map(Gaussian(0.3, 0.4))  # the bench's
    for steps in (1, 2, 5):
        start = moments(schedule.level(torch.ones((), dtype=torch.float64)))
        end = law(lambda x, noise, n=steps: Consistency(n).sample(data, x, schedule, noise), *start)
        assert (end.mean, end.std) == pytest.approx((0.3, 0.4), rel=1e-5) and end.draws == steps - 1


def test_consistency_noise_is_a_function_of_seed_image_and_step():
    """An image does not depend on its batch, and every step has other noise."""
    from diffusion.noise.draws import ImageDraws

    seen = []

    def denoise(x, t):
        seen.append(x)
        return Map(DATA)(x, t)

    x = torch.randn(4, 1, 2, 2).double()
    whole = Consistency(3).sample(denoise, x, Cosine(), ImageDraws(7, range(4)))
    part = Consistency(3).sample(Map(DATA), x[2:], Cosine(), ImageDraws(7, range(2, 4)))
    assert torch.equal(whole[2:], part)
    s, u = Consistency(3).levels(Cosine())[1:3]
    z = [(seen[k] - level.alpha * Map(DATA)(seen[k - 1], prev.until(CLEAN)).x0) / level.sigma for k, level, prev in
         ((1, s, Cosine().level(torch.ones(()).double())), (2, u, s))]  # fmt: skip
    first = ImageDraws(7, range(4))
    for k in range(2):
        torch.testing.assert_close(z[k], first(x).double(), rtol=1e-5, atol=1e-5)


# --- the target ---------------------------------------------------------------------------------------------


@all_schedules
def test_target_is_the_x0_whose_step_ends_where_both_legs_end(schedule):
    """(1 - c) x_0 + c x_0_hat(x_s) = (sigma_t X_r - sigma_r x_t) / D, X_r the end of the second leg, r = 0 included."""
    high, low = 0.9, max(schedule.t_min, 0.05)
    t, s, r = (
        levels(torch.tensor(v, dtype=torch.float64), schedule)
        for v in ([high, high, high], [0.6, 0.5, 0.7], [low, 0.0, 0.3])
    )
    x0, eps, onward = torch.randn(3, 3, dtype=torch.float64)
    x_t, x_s = t.alpha * x0 + t.sigma * eps, s.alpha * x0 + s.sigma * eps
    X = r.alpha * onward + r.sigma * (x_s - s.alpha * onward) / s.sigma
    D = r.alpha * t.sigma - t.alpha * r.sigma
    c = second_leg(t, s, r)
    torch.testing.assert_close((1 - c) * x0 + c * onward, (t.sigma * X - r.sigma * x_t) / D, rtol=1e-9, atol=1e-9)
    assert ((c > 0) & (c <= 1)).all() and float(c[1]) == pytest.approx(1)


def test_target_in_flow_is_that_of_discrete_mean_flow():
    """u* = [(t - s) (eps - x_0) + (s - r) u(x_s)] / (t - r) with u = (x - x_0_hat) / t."""
    t, s, r = (levels(torch.tensor([v], dtype=torch.float64), Flow()) for v in (0.8, 0.5, 0.2))
    x0, eps, u = torch.randn(3, 1, dtype=torch.float64)
    x_t, x_s = 0.2 * x0 + 0.8 * eps, 0.5 * x0 + 0.5 * eps
    c = second_leg(t, s, r)
    goal = (1 - c) * x0 + c * (x_s - 0.5 * u)
    torch.testing.assert_close((x_t - goal) / 0.8, (0.3 * (eps - x0) + 0.3 * u) / 0.6)


def flow_map(t, s, r, path=FromData(), **options):
    return FlowMap(At(t), To(r), Between(s), path, **options)


def test_self_and_teacher_paths_of_the_oracle_return_the_oracle():
    """Two exact legs are one: the flow map is a fixed point of shortcuts, consistency and progressive distillation."""
    oracle = Oracle(DATA, Cosine())
    x0, eps = torch.randn(2, 50, 1, 1, 1).double()
    for path in (FromSelf(), Both(oracle, True), Both(oracle, False)):
        goal, x = goals(flow_map(0.8, 0.5, 0.2, path), oracle, x0, eps, 0.2)
        t, r = (Cosine().level(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.2))
        torch.testing.assert_close(goal, Map(DATA)(x, t.until(r)).x0, rtol=1e-8, atol=1e-8)


class Both(FromTeacher):
    """A teacher that is an oracle, not a Denoiser."""

    def __init__(self, teacher, both):
        self._teacher, self.both = teacher, both

    def first(self, live, batch, s):
        return self._teacher(batch.x, batch.t, batch.cond, s)[:2]


# --- the bias of a chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, factor", [(4, 0.6811), (8, 0.8296), (16, 0.9114), (32, 0.9547)])
@pytest.mark.parametrize("path", ["data", "teacher"])
def test_chain_of_levels_has_the_bias_of_the_product_of_cosines(n, factor, path):
    """Flow, N(0, .5^2), n even levels from 1 to 0; the gains are the normal equations' solutions, level by level.

    The gain at t = 1 is k times the product of cos(theta_i - theta_{i+1}), k = sqrt(v_0 / v_1) = .5. The same with the
    data's path and an ideal teacher's DDIM step.
    """
    schedule, data = Flow(), Gaussian(0.0, STD)
    found = chain(schedule, n, FromData() if path == "data" else Both(Oracle(data, schedule, exact=False), False))
    theta = [math.atan2(k / n, (1 - k / n) * STD) for k in range(n + 1)]
    product = math.prod(math.cos(b - a) for a, b in zip(theta, theta[1:], strict=False))
    assert found == pytest.approx(product, rel=1e-9) and product == pytest.approx(factor, abs=5e-5)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)  # DDIM with n steps has the same
    assert float(DDIM(n).sample(data, x, schedule)) / STD == pytest.approx(product, rel=1e-6)


class Ending(Weight):
    """(D / sigma_t)^2: the squared error of X_r."""

    def __init__(self, r):
        self.r = r

    def __call__(self, t, target, schedule):
        r = levels(torch.tensor([self.r], dtype=torch.float64), schedule).like(t.alpha)
        return (r.alpha - t.alpha * r.sigma / t.sigma).square()


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), Karras()], ids=lambda s: type(s).__name__)
def test_loss_of_the_oracle_is_that_of_the_angle_between_the_levels(schedule):
    """2 v_r (1 - cos(theta_t - theta_s)) a pixel, as an error of X_r; theta = atan2(sigma, alpha std)."""
    x0, eps = corners(mean=0.3)
    t, s, r = 0.8, 0.6, 0.3
    objective = flow_map(t, s, r, shape="distance", weight=Ending(r))
    loss = objective(Oracle(DATA, schedule), x0, noise=lambda x: eps).loss
    a, b, end = (schedule.level(torch.tensor(v, dtype=torch.float64)) for v in (t, s, r))
    angle = torch.atan2(a.sigma, a.alpha * STD) - torch.atan2(b.sigma, b.alpha * STD)
    v = end.alpha**2 * STD**2 + end.sigma**2
    assert float(loss) == pytest.approx(float(2 * v * (1 - angle.cos())), rel=1e-9)


# --- equality with Objective --------------------------------------------------------------------------------


def net(**options):
    torch.manual_seed(1)
    found = UNet(1, 8, (1, 2), 1, head_width=8, num_classes=3, dropout=0.3, **options)
    for p in found.parameters():
        nn.init.normal_(p, std=0.1) if not p.any() else None
    return found


def both(objectives, denoisers):
    """Loss and gradients of each objective with the same draws and the same dropout."""
    found = []
    for objective, denoiser in zip(objectives, denoisers, strict=True):
        draws = StepDraws(3, 5, 0)
        torch.manual_seed(11)
        x0, y = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
        terms = objective(denoiser, x0, Condition(y), draws.normal, draws.uniform)
        terms.loss.backward()
        found.append((terms, {n: p.grad for n, p in denoiser.named_parameters() if p.grad is not None}))
    return found


@pytest.mark.parametrize("end", [Clean(), Anywhere(0.5)], ids=["clean", "anywhere"])
def test_flow_map_without_a_second_leg_is_objective_to_the_bit(end):
    """r = s: the same loss, levels, errors and gradients, with dropout, dropped labels and offset noise."""
    second = end.second_clock
    plain, mapped = Denoiser(net(), Cosine(), V()), Denoiser(net(second_clock=second), Cosine(), V())
    if second:
        mapped.load_state_dict(plain.state_dict(), strict=False)
        for p in mapped.net.second.parameters():
            nn.init.zeros_(p)
    options = {"times": Stratified(), "weight": Unit(), "offset": 0.1}
    maps = FlowMap(end=end, gap=Whole(), shape="distance", **options)
    (a, grads), (b, others) = both([Objective(**options), maps], [plain, mapped])
    assert torch.equal(a.loss, b.loss) and torch.equal(a.mse, b.mse) and torch.equal(a.error, b.error)
    assert all(torch.equal(u, v) for u, v in zip(a.t, b.t, strict=True))
    assert grads and all(torch.equal(others[n], g) for n, g in grads.items())


def test_both_passes_have_the_same_dropout():
    """With s = t - 1e-9 the two predictions agree, which they do not with different masks."""
    denoiser = Denoiser(net().train(), Cosine(), V()).double()
    x0 = torch.randn(8, 1, 8, 8).double()
    objective = flow_map(0.5, 0.5 - 1e-9, 0.0)
    objective.end = Clean()
    torch.manual_seed(3)
    batch = objective.noised(denoiser, x0, Condition(), torch.randn_like, lambda n: torch.rand(n).double())
    s = levels(torch.full((8,), 0.5 - 1e-9).double(), Cosine())
    clean = levels(torch.zeros(8).double(), Cosine())
    goal, pred = objective.goal(denoiser, batch, s, clean), denoiser(batch.x, batch.t, batch.cond, clean).x0
    torch.testing.assert_close(goal, pred, rtol=1e-4, atol=1e-5)
    assert (denoiser(batch.x, batch.t, batch.cond).x0 - pred).abs().max() > 1e-2  # the next mask


def test_passes_are_float32_whatever_the_trainers_precision():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x, clock, y=None, keep=None):
            out = self.lin(x)
            seen.append(out.dtype)
            return out

    with torch.autocast("cpu", torch.bfloat16):
        FlowMap(Stratified())(Denoiser(Watching(), Cosine(), V()), torch.randn(8, 1, 4, 4), progress=0.9)
    assert seen == [torch.float32] * 2


# --- ends and gaps ------------------------------------------------------------------------------------------


def uniform(n):
    return torch.rand(n, dtype=torch.float64)


def test_ends_have_their_documented_laws():
    t = torch.full((40_000,), 0.6, dtype=torch.float64)
    assert not Clean()(t, uniform).any()
    r = Anywhere(0.5, 0.2)(t, uniform)
    assert float((r == t).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((r == 0).double().mean()) == pytest.approx(0.1, abs=0.01) and (r <= t).all()
    inside = r[(r < t) & (r > 0)]
    assert float(inside.mean()) == pytest.approx(0.3, abs=0.01) and float(inside.max()) < 0.6
    r = Strides(2, 8)(t, uniform)
    for n in (2, 4, 8):
        assert float(torch.isclose(r, t - 1 / n).double().mean()) == pytest.approx(1 / 3, abs=0.02)
    assert not Strides(1, 1)(t, uniform).any()


def test_ect_gap_is_its_formula_and_shrinks_by_stages():
    schedule, t = Karras(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    level = schedule.level(t)
    clean = levels(torch.zeros(3).double(), schedule)
    for progress, power in ((0.0, 1), (0.26, 2), (0.5, 3), (0.99, 4), (1.0, 4)):
        s = levels(ECT(8.0, 4)(level, clean, schedule, progress), schedule)
        rho = level.ratio
        wanted = rho * (1 - (1 + 8 / (1 + rho.exp())) / 8.0**power)
        torch.testing.assert_close(s.ratio, wanted, rtol=1e-6, atol=0)
    assert not ECT(2.0, 1)(schedule.level(torch.tensor([0.2]).double()), clean, schedule, 0.0).any()  # clean


@all_schedules
def test_levels_of_a_gap_lie_between_end_and_time(schedule):
    """At every progress, for all ends, also where no signal remains; c is finite."""
    t = schedule.level(torch.linspace(max(schedule.t_min, 1e-3), 1, 50, dtype=torch.float64))
    for gap in (ECT(), ECT(256, 1), Even(), Halfway(), Whole()):
        for end in (Clean(), Anywhere(), Strides()):
            for progress in (0.0, 0.5, 1.0):
                r = levels(end(t.t, uniform), schedule)
                s = levels(gap(t, r, schedule, progress).maximum(r.t), schedule)
                assert (s.t <= t.t).all() and (s.t >= r.t).all(), (gap, end)
                c = second_leg(t, s, r)
                assert c.isfinite().all() and (c >= -1e-9).all() and (c <= 1 + 1e-9).all()


def test_even_gap_doubles_its_number_of_levels():
    t = Flow().level(torch.tensor([1.0], dtype=torch.float64))
    found = [round(1 / (1 - float(Even(10, 80)(t, t, Flow(), p)))) for p in (0, 0.26, 0.51, 0.76, 1.0)]
    assert found == [10, 20, 40, 80, 80]


@pytest.mark.parametrize("objective", [
    FlowMap(), FlowMap(shape="huber"), FlowMap(LogNormal(), Strides(), Halfway(), FromSelf(), "norm", Unit()),
    FlowMap(Stratified(), Anywhere(), Even(), FromData(), "huber", Unit()),
], ids=["ect", "huber", "shortcut", "mean flow"])  # fmt: skip
def test_flow_maps_train_a_network_with_finite_gradients(objective):
    """At the first and at a late step, on a schedule without signal at t = 1; and survive their spec."""
    denoiser = Denoiser(net(second_clock=True), Flow(), V())
    for progress in (0.0, 0.95):
        terms = objective(denoiser, torch.randn(16, 1, 8, 8), progress=progress)
        terms.loss.backward()
        assert terms.loss.isfinite() and terms.mse.shape == terms.error.shape == (16,)
    assert all(p.grad.isfinite().all() for p in denoiser.parameters() if p.grad is not None)
    assert denoiser.net.second[2].weight.grad.any()
    assert spec(build(spec(objective))) == spec(objective)


def test_pseudo_huber_is_the_norm_far_away_and_squared_nearby():
    """sqrt(e^2 + k^2) - k, k = .00054 sqrt(D)."""
    batch = Noised(*torch.zeros(3, 1, 1, 10, 10), Level1(), Level1(), Condition())
    for size in (1e-4, 1.0):
        error, k = torch.full((1, 1, 10, 10), size), 0.0054
        found = FlowMap(shape="huber").cost(None, batch, error, levels(torch.zeros(1).double(), Flow()))
        assert float(found) == pytest.approx((100 * size**2 + k**2) ** 0.5 - k, rel=1e-4)
        assert float(FlowMap().cost(None, batch, error, levels(torch.zeros(1).double(), Flow()))) == pytest.approx(
            10 * size, rel=1e-3
        )


def Level1():
    """A level with rho = 1."""
    return Flow().level(torch.tensor([0.5], dtype=torch.float64))


@pytest.mark.parametrize("make, words", [
    (lambda: FlowMap(shape="l2"), "shape must be one of norm, huber, distance, got 'l2'"),
    (lambda: FlowMap(end=Anywhere()), "set a weight, e.g. Unit"),
    (lambda: FlowMap(end=Strides())(Denoiser(net(), Cosine()), torch.zeros(2, 1, 8, 8)), "second_clock: true"),
    (lambda: FlowMap(path=FromSelf())(Denoiser(net(), Cosine()), torch.zeros(2, 1, 8, 8)), "FromSelf needs"),
    (lambda: ECT(1.0), "q > 1"), (lambda: Even(20, 10), "first <= last"), (lambda: Strides(3, 8), "powers of two"),
    (lambda: Anywhere(1.5), "probability in [0, 1], got 1.5"), (lambda: Anywhere(clean=2), "Anywhere: clean"),
])  # fmt: skip
def test_flow_map_errors_state_the_remedy(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
