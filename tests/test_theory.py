"""The equations of docs/theory.md that no other test proves, each against brute force or a closed form."""

import itertools
import math

import pytest
import torch

from diffusion.denoiser import predict
from diffusion.denoiser.targets import EDM, X0, Eps, Score, Target, V, Velocity
from diffusion.loss.weights import ELBO, Constant, Unit
from diffusion.noise import (
    VE,
    VP,
    Cosine,
    Flow,
    Karras,
    Level,
    Linear,
    Schedule,
    SubVP,
    forward_var,
    posterior_var,
)
from diffusion.samplers import DDIM, AnnealedLangevin, DPMSolver, PredictorCorrector
from diffusion.samplers.steps import half_log_snr
from diffusion.support.specs import concrete

MEAN, STD = 0.3, 0.4
SCHEDULES = [VP(), SubVP(), VE(), Karras(), Flow(), Cosine(100), Linear(100)]
NAMES = [type(s).__name__ for s in SCHEDULES]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def level(schedule: Schedule, t: float) -> Level:
    return schedule.level(torch.tensor(t, dtype=torch.float64))


def normal(x, mean, var):
    """log N(x; mean, var)."""
    return -((x - mean) ** 2 / var + torch.as_tensor(2 * math.pi * var).log()) / 2


def kl(m1, v1, m2, v2):
    """KL(N(m1, v1) || N(m2, v2)) in nats."""
    return ((v2 / v1).log() + (v1 + (m1 - m2) ** 2) / v2 - 1) / 2


def posterior_mean(x, x0, s, t):
    """E[x_s | x_t = x, x_0], as in docs/theory.md."""
    a = t.alpha / s.alpha
    return a * s.sigma**2 / t.sigma**2 * x + s.alpha * forward_var(s, t) / t.sigma**2 * x0


def ideal(x, t):
    """E[x_0 | x_t = x] and Var[x_0 | x_t] of Gaussian data."""
    d = t.alpha**2 * STD**2 + t.sigma**2
    return MEAN + t.alpha * STD**2 / d * (x - t.alpha * MEAN), STD**2 * t.sigma**2 / d


# --- the forward process --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(100)])
def test_chain_of_steps_matches_the_closed_form(schedule):
    """Mean and variance of x_t step by step: the product of the roots, and the complement to 1."""
    scale, var = 1.0, 0.0
    for i, beta in enumerate(schedule.betas().tolist()):
        scale, var = math.sqrt(1 - beta) * scale, (1 - beta) * var + beta
        assert scale == pytest.approx(float(schedule.alphas[i]), rel=1e-9)
        assert var == pytest.approx(float(schedule.sigmas[i] ** 2), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    x = torch.full((40_000,), 2.0)
    for i, beta in enumerate(Linear(50).betas().tolist()):
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * torch.randn(x.shape, generator=generator)
        if i in (5, 20, 49):
            t = level(Linear(50), (i + 1) / 50)
            assert float(x.mean()) == pytest.approx(2 * float(t.alpha), abs=0.02)
            assert float(x.std()) == pytest.approx(float(t.sigma), rel=0.02)


@each_schedule
def test_forward_steps_compose(schedule):
    """Steps from r to s and from s to t compose to one from r to t; a step adds the variance forward_var."""
    r, s, t = (level(schedule, v) for v in (0.21, 0.5, 0.83))
    two = (t.alpha / s.alpha) ** 2 * forward_var(r, s) + forward_var(s, t)
    torch.testing.assert_close(two, forward_var(r, t), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        (t.alpha / s.alpha) ** 2 * s.sigma**2 + forward_var(s, t), t.sigma**2, rtol=1e-12, atol=0
    )


@each_schedule
def test_posterior_matches_bayes_rule(schedule):
    """q(x_s | x_t, x_0) by multiplying q(x_s | x_0) and q(x_t | x_s) on a grid."""
    s, t, x0, x = level(schedule, 0.4), level(schedule, 0.5), 0.7, 0.9
    near = s.alpha * x0
    grid = near + s.sigma * torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    log = normal(grid, near, s.sigma**2) + normal(x, t.alpha / s.alpha * grid, forward_var(s, t))
    p = (log - log.max()).exp()
    p /= p.sum()
    mean = (p * grid).sum()
    torch.testing.assert_close(mean, posterior_mean(x, x0, s, t), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((p * (grid - mean) ** 2).sum(), posterior_var(s, t), rtol=1e-6, atol=0)


@each_schedule
def test_posterior_mean_has_three_equal_forms(schedule):
    s, t, x0, x = level(schedule, 0.4), level(schedule, 0.5), f64(0.7, -0.2), f64(0.9, 2.0)
    eps = predict(x, x0, t).eps
    a = t.alpha / s.alpha
    ddpm = (x - forward_var(s, t) / t.sigma * eps) / a
    ddim = s.alpha * x0 + (s.sigma**2 - posterior_var(s, t)).sqrt() * eps
    torch.testing.assert_close(ddpm, posterior_mean(x, x0, s, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ddim, posterior_mean(x, x0, s, t), rtol=1e-9, atol=1e-9)


@each_schedule
def test_sde_moments_match_the_marginals(schedule):
    """m' = f m and v' = 2 f v + g^2, by differences."""
    h = 1e-6
    for v in (0.155, 0.555, 0.905):
        a, t, b = (level(schedule, v + d) for d in (-h, 0, h))
        f, g2 = schedule.sde(f64(v))
        assert float((b.alpha - a.alpha) / (2 * h)) == pytest.approx(float(f * t.alpha), rel=1e-5, abs=1e-8)
        growth = float((b.sigma**2 - a.sigma**2) / (2 * h))
        assert growth == pytest.approx(float(2 * f * t.sigma**2 + g2), rel=1e-5)
        slope = float((b.log_snr - a.log_snr) / (2 * h))
        assert float(g2) == pytest.approx(-float(t.sigma**2) * slope, rel=1e-5)


# --- the bound ------------------------------------------------------------------------------------------


def bound(levels, x0, exact):
    """L_T + sum of L_t + L_0 of one number x0, in nats, with the best Gaussian reverse step or DDPM's small one."""
    nodes, weights = f64(-math.sqrt(3), 0, math.sqrt(3)), f64(1, 4, 1) / 6  # exact for polynomials up to degree 5
    last, first = levels[-1], levels[0]
    prior = (last.alpha * MEAN, last.alpha**2 * STD**2 + last.sigma**2) if exact else (f64(0), f64(1))
    total = kl(last.alpha * x0, last.sigma**2, *prior)
    for s, t in itertools.pairwise(levels):
        x = t.alpha * x0 + t.sigma * nodes
        guess, var0 = ideal(x, t)
        v1 = v2 = posterior_var(s, t)
        if exact:
            v2 = v1 + (s.alpha * forward_var(s, t) / t.sigma**2) ** 2 * var0
        total = total + (weights * kl(posterior_mean(x, x0, s, t), v1, posterior_mean(x, guess, s, t), v2)).sum()
    guess, var0 = ideal(first.alpha * x0 + first.sigma * nodes, first)
    return float(total - (weights * normal(x0, guess, var0)).sum())


@pytest.mark.parametrize("x0", [-0.5, 0.3, 1.1])
def test_elbo_is_the_exact_evidence(x0):
    """With the optimal reverse steps the bound is tight for any number of steps; with DDPM's it is looser, less so for
    more steps between the same two ends."""
    evidence = -float(normal(f64(x0), MEAN, f64(STD**2)))
    for schedule, T in ((Linear(10), 10), (Cosine(25), 25), (Flow(), 7)):
        levels = [level(schedule, 0.999 * (i + 1) / T if schedule.T is None else (i + 1) / T) for i in range(T)]
        assert bound(levels, x0, exact=True) == pytest.approx(evidence, abs=1e-10)
    few, many = (
        bound([level(VP(), 0.05 + 0.95 * i / n) for i in range(n + 1)], x0, exact=False) - evidence for n in (20, 200)
    )
    assert few > 5 * many > 0


@each_schedule
def test_kl_of_a_step_matches_integration(schedule):
    """By integration: half of the SNR's fall times the squared error of x_0, and Ho's form with 1 / (2 sigma^2)."""
    s, t, x, x0, guess = level(schedule, 0.4), level(schedule, 0.5), 0.9, f64(0.7), f64(0.55)
    var = posterior_var(s, t)
    m1, m2 = (posterior_mean(x, v, s, t) for v in (x0, guess))
    grid = m1 + var.sqrt() * torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    p, q = normal(grid, m1, var), normal(grid, m2, var)
    integral = float(torch.trapezoid(p.exp() * (p - q), grid))
    assert integral == pytest.approx(float((m1 - m2) ** 2 / (2 * var)), rel=1e-6)
    snr = lambda v: (v.alpha / v.sigma) ** 2  # noqa: E731
    assert integral == pytest.approx(float((snr(s) - snr(t)) / 2 * (x0 - guess) ** 2), rel=1e-6)
    error = predict(x, x0, t).eps - predict(x, guess, t).eps
    ho = forward_var(s, t) ** 2 / (2 * var * (t.alpha / s.alpha) ** 2 * t.sigma**2)
    assert integral == pytest.approx(float(ho * error**2), rel=1e-6)


def test_kl_of_two_gaussians_matches_integration():
    m1, v1, m2, v2 = f64(0.3), f64(0.4), f64(-0.2), f64(1.7)
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    p, q = normal(grid, m1, v1), normal(grid, m2, v2)
    assert float(torch.trapezoid(p.exp() * (p - q), grid)) == pytest.approx(float(kl(m1, v1, m2, v2)), rel=1e-9)


@each_schedule
def test_elbo_weight_gives_the_entropy(schedule):
    """Gaussian data and the ideal denoiser: the three terms add up to the entropy, whatever the schedule."""
    ends = (0.1, 0.9)  # on the tables
    if schedule.T:  # a table's log-SNR has corners: one node in the middle of each interval
        t = (torch.arange(10, 90, dtype=torch.float64) + 0.5) / schedule.T
        t = (t[:, None] + torch.linspace(-0.4, 0.4, 9, dtype=torch.float64) / schedule.T).flatten()
    else:
        t = ends[0] + (ends[1] - ends[0]) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    at = schedule.level(t)
    mse = ideal(0 * t, at)[1]
    diffusion = (ends[1] - ends[0]) * float((ELBO()(at, X0(), schedule) * mse).mean())
    low, high = (float((v.alpha / v.sigma) ** 2) for v in (level(schedule, ends[1]), level(schedule, ends[0])))
    assert diffusion == pytest.approx(math.log((1 + STD**2 * high) / (1 + STD**2 * low)) / 2, rel=1e-3)
    first = math.log(2 * math.pi * math.e * STD**2 / (1 + STD**2 * high)) / 2
    last = math.log(1 + STD**2 * low) / 2
    assert first + diffusion + last == pytest.approx(math.log(2 * math.pi * math.e * STD**2) / 2, abs=5e-3)


def test_best_reverse_variance_lies_between_small_and_large():
    """Var[x_s | x_t] is "small" for a single point as data, "large" for N(0, 1), and in between for less variance."""
    s, t = level(Cosine(), 0.5), level(Cosine(), 0.6)

    def best(std):  # from the joint Gaussian of (x_s, x_t)
        cov = s.alpha * t.alpha * std**2 + t.alpha / s.alpha * s.sigma**2
        return s.alpha**2 * std**2 + s.sigma**2 - cov**2 / (t.alpha**2 * std**2 + t.sigma**2)

    small, large = posterior_var(s, t), forward_var(s, t)
    torch.testing.assert_close(best(0.0), small, rtol=1e-12, atol=0)
    torch.testing.assert_close(best(1.0), large, rtol=1e-12, atol=0)
    assert small < best(STD) < large
    formula = small + (s.alpha * forward_var(s, t) / t.sigma**2) ** 2 * ideal(f64(0), t)[1]
    torch.testing.assert_close(best(STD), formula, rtol=1e-12, atol=0)


# --- targets --------------------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("target", sorted(concrete(Target), key=lambda k: k.__name__))
def test_errors_of_targets_are_multiples_of_the_error_of_x0(target, schedule):
    """Unit is the ratio of the target's error to that of x_0; by hand for each target."""
    t, x, x0, guess = level(schedule, 0.37), f64(0.9), f64(0.7), f64(0.1)
    error = target().of(*predict(x, x0, t)[:2], t) - target().of(*predict(x, guess, t)[:2], t)
    ratio = (error / (x0 - guess)) ** 2
    torch.testing.assert_close(Unit()(t, target(), schedule), ratio.squeeze(), rtol=1e-9, atol=0)
    a, s = float(t.alpha), float(t.sigma)
    by_hand = {
        Eps: (a / s) ** 2, X0: 1, V: ((a**2 + s**2) / s) ** 2, Score: (a / s**2) ** 2, Velocity: ((a + s) / s) ** 2,
        EDM: (a / s) ** 2 + 1 / 0.5**2,
    }  # fmt: skip
    if target in by_hand:
        assert float(ratio) == pytest.approx(by_hand[target], rel=1e-9)
    assert float(Constant()(t, target(), schedule)) == pytest.approx((a / s) ** 2)


@each_schedule
def test_edm_scales_give_unit_variance(schedule):
    """Input and output have unit variance, and the skip minimises c_out."""
    t, std = level(schedule, 0.37), 0.5
    target = EDM(std)
    var_x = t.alpha**2 * std**2 + t.sigma**2
    assert float(target.c_in(t) ** 2 * var_x) == pytest.approx(1)
    image, noise = (target.of(*v, t) for v in ((f64(1), f64(0)), (f64(0), f64(1))))
    assert float(image**2 * std**2 + noise**2) == pytest.approx(1)
    skip, out = (target.x0(*v, t) for v in ((f64(1), f64(0)), (f64(0), f64(1))))
    left = lambda c: float((1 - t.alpha * c) ** 2 * std**2 + c**2 * t.sigma**2)  # noqa: E731  Var[x_0 - c x]
    assert left(skip) == pytest.approx(float(out**2)) and left(skip * 1.01) > left(skip) < left(skip * 0.99)


# --- the score and its walks ----------------------------------------------------------------------------


def mixture(x, t):
    """log q_t(x) and E[x_0 | x] of data that is -1 or .6, each with standard deviation .2."""
    centres, var = f64(-1, 0.6), t.alpha**2 * 0.04 + t.sigma**2
    log = normal(x[..., None], t.alpha * centres, var) + math.log(0.5)
    guess = centres + t.alpha * 0.04 / var * (x[..., None] - t.alpha * centres)
    return log.logsumexp(-1), (log.softmax(-1) * guess).sum(-1)


@each_schedule
def test_score_matches_tweedies_formula(schedule):
    """-eps / sigma of the ideal denoiser is the gradient of log q_t, and x_0 = (x + sigma^2 score) / alpha."""
    t = level(schedule, 0.4)
    x = (t.sigma * torch.linspace(-2, 2, 21, dtype=torch.float64)).requires_grad_()
    log, x0 = mixture(x, t)
    (score,) = torch.autograd.grad(log.sum(), x)
    torch.testing.assert_close(Score().of(*predict(x, x0, t)[:2], t), score, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(Score().x0(x, score, t), x0, rtol=1e-7, atol=1e-7)


def test_denoising_score_matching_finds_the_score():
    """Least squares of -eps / sigma on x gives the score of Gaussian data, a straight line."""
    t, g = level(VP(), 0.3), torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(400_000, generator=g, dtype=torch.float64) for _ in range(2))
    x = t.alpha * (MEAN + STD * x0) + t.sigma * eps
    line = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), (-eps / t.sigma)[:, None]).solution.flatten()
    var = t.alpha**2 * STD**2 + t.sigma**2
    assert line.tolist() == pytest.approx([-1 / float(var), float(t.alpha * MEAN / var)], rel=0.02)


def recursion(walk, t, s):
    """x -> a x + b z of one step on Gaussian data of mean 0: the pair (a, b)."""

    def denoise(x, v):
        return predict(x, v.alpha * STD**2 / (v.alpha**2 * STD**2 + v.sigma**2) * x, v)

    def step(x, z):
        return float(walk.step(denoise, f64(x), t, s, None, lambda x: f64(z))[0])

    return step(1.0, 0.0), step(0.0, 1.0)


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0])
def test_langevin_has_the_predicted_stationary_variance(epsilon):
    """v / (1 - e / (4 v)) is slightly above v, more so for a larger step e = epsilon sigma^2."""
    s, t = level(VE(), 0.5), level(VE(), 0.6)
    a, b = recursion(AnnealedLangevin(10, inner=1, epsilon=epsilon), t, s)
    v, e = float(STD**2 + t.sigma**2), epsilon * float(t.sigma) ** 2
    assert a == pytest.approx(1 - e / (2 * v)) and b == pytest.approx(math.sqrt(e))
    assert b**2 / (1 - a**2) == pytest.approx(v / (1 - e / (4 * v)), rel=1e-9)


def test_corrector_is_langevin():
    """x + e score + sqrt(2 e) z with e = 2 (snr sigma)^2 is the Langevin step of size 2 e."""
    s, t = level(VP(), 0.5), level(VP(), 0.55)
    plain, corrected = (recursion(PredictorCorrector(10, corrections=k, snr=0.16), t, s)[0] for k in (0, 1))
    e, v = 2 * (0.16 * float(s.sigma)) ** 2, float(s.alpha**2 * STD**2 + s.sigma**2)
    assert corrected / plain == pytest.approx(1 - 2 * e / (2 * v))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.05, 5), Flow()], ids=lambda v: type(v).__name__)
def test_reverse_walks_keep_the_marginals(schedule, eta):
    """-(f x - (1 + eta^2) / 2 g^2 score) with eta g dw, on Gaussian data: mean and variance match the marginals."""
    t = torch.linspace(0.95, 0.05, 20_001, dtype=torch.float64)
    f, g2 = schedule.sde(t)
    h = float(t[0] - t[1])
    at = schedule.level(t)
    v = at.alpha**2 * STD**2 + at.sigma**2
    mean, var = float(at.alpha[0] * MEAN), float(v[0])
    drift, pull = f.tolist(), ((1 + eta**2) / 2 * g2).tolist()
    true_mean, true_var, fresh = (at.alpha * MEAN).tolist(), v.tolist(), (eta**2 * g2).tolist()
    for k in range(len(t) - 1):
        slope = 1 - h * (drift[k] + pull[k] / true_var[k])
        mean = slope * mean + h * pull[k] / true_var[k] * true_mean[k]
        var = slope**2 * var + h * fresh[k]
    assert mean == pytest.approx(true_mean[-1], rel=2e-3) and var == pytest.approx(true_var[-1], rel=5e-3)


@each_schedule
def test_ode_in_the_variable_sigma_over_alpha(schedule):
    """d(sigma / alpha) / dt = g^2 / (2 alpha sigma), so that d(x / alpha) = eps d(sigma / alpha)."""
    h = 1e-6
    for v in (0.155, 0.555, 0.905):
        a, t, b = (level(schedule, v + d) for d in (-h, 0, h))
        g2 = schedule.sde(f64(v))[1]
        assert float((b.ratio - a.ratio) / (2 * h)) == pytest.approx(float(g2 / (2 * t.alpha * t.sigma)), rel=1e-5)


def test_velocity_is_the_probability_flow():
    """f x - g^2 score / 2 of straight paths is eps - x_0."""
    t, x = level(Flow(), 0.37), f64(-1.0, 0.2, 0.9)
    pred = predict(x, mixture(x, t)[1], t)
    f, g2 = Flow().sde(t.t)
    flow = f * x - g2 / 2 * Score().of(*pred[:2], t)
    torch.testing.assert_close(flow, Velocity().of(*pred[:2], t), rtol=1e-9, atol=1e-9)


def test_change_of_variables_gives_the_log_density():
    """log p of a mixture by integrating the probability flow and its divergence, in the variable r = sigma / alpha."""
    y = f64(-1.3, -1.0, -0.2, 0.5, 0.9)
    at = lambda r: Level(r, torch.ones_like(r), r)  # noqa: E731  alpha = 1: y = x / alpha
    start, steps = math.log(1e-4), 2000

    def field(y, r):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            eps = predict(y, mixture(y, at(r))[1], at(r)).eps
            (slope,) = torch.autograd.grad(eps.sum(), y)
        return eps.detach(), slope

    logs = torch.linspace(start, math.log(50), steps + 1, dtype=torch.float64)
    exact = mixture(y, at(f64(1e-4).squeeze()))[0]
    total = torch.zeros_like(y)
    for a, b in itertools.pairwise(logs.exp()):  # the midpoint rule
        m = (a * b).sqrt()
        v, div = field(y + (m - a) * field(y, a)[0], m)
        y, total = y + (b - a) * v, total + (b - a) * div
    last = normal(y, -0.2, f64(0.8**2 + 0.04 + 50**2))  # the mixture's mean and variance at r = 50
    torch.testing.assert_close(last + total, exact, rtol=0, atol=3e-3)


def test_hutchinson_estimate_is_unbiased():
    """z^T J z over all vectors of signs has the trace as its mean, exactly; half of J's symmetric part is its noise."""
    J = torch.tensor([[1.0, 2.0, -1.0], [0.5, -3.0, 4.0], [2.0, 0.0, 0.7]]).double()
    z = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).double()
    values = ((z @ J) * z).sum(1)
    assert float(values.mean()) == pytest.approx(float(J.trace()))
    off = (J + J.T - 2 * torch.diag(J.diagonal())) / 2
    assert float(values.var(unbiased=False)) == pytest.approx(2 * float((off**2).sum()))


# --- faster sampling, and guidance -------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@each_schedule
def test_ddim_keeps_the_marginal(schedule, eta):
    """With the true x_0 and eps, whatever eta: mean alpha_s x_0 and variance sigma_s^2."""
    s, t = level(schedule, 0.4), level(schedule, 0.6)

    def step(eps, z):
        x = t.alpha * 0.7 + t.sigma * f64(eps)
        return float(DDIM(10, eta).step(lambda x, t: predict(x, f64(0.7), t), x, t, s, None, lambda x: f64(z))[0])

    mean = step(0.0, 0.0)
    assert mean == pytest.approx(0.7 * float(s.alpha), abs=1e-9)
    kept, fresh = (step(1.0, 0.0) - mean) ** 2, (step(0.0, 1.0) - mean) ** 2
    assert fresh == pytest.approx(eta**2 * float(posterior_var(s, t)), rel=1e-9)  # eta scales the deviation
    assert kept + fresh == pytest.approx(float(s.sigma**2), rel=1e-9)


@pytest.mark.parametrize("schedule", [VP(), Flow()], ids=["VP", "Flow"])
def test_exponential_integrator_is_exact_for_a_parabola(schedule):
    """x_s = sigma_s / sigma_t x + sigma_s int e^lam x_0 dlam; exact for a parabola, by the c's and by DPMSolver."""
    levels = [level(schedule, v) for v in (0.8, 0.74, 0.67, 0.6)]
    *_, t, s = levels
    poly = lambda v: 0.3 - 0.5 * v + 0.2 * v**2  # noqa: E731  x_0 as a function of lam
    x, h = f64(0.4), half_log_snr(s) - half_log_snr(t)
    v = torch.linspace(float(half_log_snr(t)), float(half_log_snr(s)), 100_001, dtype=torch.float64)
    expected = s.sigma / t.sigma * x + s.sigma * torch.trapezoid(v.exp() * poly(v), v)
    c0 = 1 - (-h).exp()
    c1 = 1 - c0 / h
    c2 = 0.5 - c1 / h
    d1, d2 = h * (-0.5 + 0.4 * half_log_snr(t)), h**2 * 0.4
    by_hand = s.sigma / t.sigma * x + s.alpha * (c0 * poly(half_log_snr(t)) + c1 * d1 + c2 * d2)
    torch.testing.assert_close(by_hand, expected, rtol=1e-8, atol=0)
    past = [(u, predict(x, poly(half_log_snr(u)) + 0 * x, u)) for u in levels[:2]]
    ideal = lambda x, t: predict(x, poly(half_log_snr(t)) + 0 * x, t)  # noqa: E731
    third = DPMSolver(10, order=3).step(ideal, x, t, s, past, None)[0]
    torch.testing.assert_close(third, expected, rtol=1e-8, atol=0)


def test_guidance_is_the_same_for_every_target():
    """Extrapolating eps, v, velocity or the score by the same scale is extrapolating x_0."""
    t, x, free, given, scale = level(VP(), 0.4), f64(0.9), f64(0.1), f64(0.7), 3.0
    for target in (Eps(), V(), Velocity(), Score(), EDM()):
        a, b = (target.of(*predict(x, v, t)[:2], t) for v in (free, given))
        torch.testing.assert_close(target.x0(x, torch.lerp(a, b, scale), t), torch.lerp(free, given, scale))


def test_guidance_is_the_score_of_a_sharpened_posterior():
    """At one level, grad log [q(x) q(c | x)^w] is the line through the two scores; c is one half of the mixture."""
    t, w = level(VP(), 0.4), 2.5
    x = f64(-0.5, 0.1, 0.6).requires_grad_()
    var = t.alpha**2 * 0.04 + t.sigma**2
    free = mixture(x, t)[0]
    given = normal(x, t.alpha * 0.6, var)
    label = given + math.log(0.5) - free  # log q(c | x)
    grad = lambda v: torch.autograd.grad(v.sum(), x, retain_graph=True)[0]  # noqa: E731
    torch.testing.assert_close(grad(free + w * label), torch.lerp(grad(free), grad(given), w))


# --- bits, and common mistakes ----------------------------------------------------------------------


def test_discretised_decoder_sums_to_one():
    """The 256 bins of a Gaussian, the outer two open; a bin's probability is the integral of the density over it."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    cdf = lambda x: torch.special.ndtr((x - 0.13) / 0.02)  # noqa: E731
    p = cdf(values + 1 / 255) - cdf(values - 1 / 255)
    p[0], p[-1] = cdf(values[0] + 1 / 255), 1 - cdf(values[-1] - 1 / 255)
    assert float(p.sum()) == pytest.approx(1, rel=1e-12)
    inside = torch.linspace(float(values[150]) - 1 / 255, float(values[150]) + 1 / 255, 1001, dtype=torch.float64)
    density = normal(inside, 0.13, 0.02**2).exp()
    assert float(torch.trapezoid(density, inside)) == pytest.approx(float(p[150]), rel=1e-5)


def test_bits_per_dimension_of_uniform_pixels_are_eight():
    """Uniform grey values take 8 bits, as probabilities or as the density of dequantised values."""
    D = 12
    assert -D * math.log(1 / 256) / (D * math.log(2)) == pytest.approx(8)
    density = 1 / (2 + 2 / 255)  # from half a bin below -1 to half a bin above 1
    assert -D * math.log(density) / (D * math.log(2)) + math.log2(127.5) == pytest.approx(8)


def test_common_mistakes_are_mistakes():
    """Each wrong form in the box fails clearly on a case computed by hand."""
    schedule = Linear()
    betas, s, t = schedule.betas(), level(schedule, 0.5), level(schedule, 0.501)
    i, x, x0 = 500, f64(0.9), f64(0.7)
    eps, right = predict(x, x0, t).eps, posterior_mean(x, x0, s, t)
    for root, good in ((t.sigma, True), (betas[i].sqrt(), False)):  # 1 - bar alpha, or 1 - alpha of one step
        mean = (x - betas[i] / root * eps) / (1 - betas[i]).sqrt()
        assert (abs(float(mean / right) - 1) < 1e-9) == good
    v, e = 0.7, 0.01
    for up, noise, factor in ((e / 2, e, 1), (e, 2 * e, 1), (e, e, 0.5), (e / 2, 2 * e, 2)):  # Langevin
        assert noise / (1 - (1 - up / v) ** 2) == pytest.approx(factor * v, rel=0.01)
    every_tenth = torch.cumprod(1 - betas[::10], 0)[-1].sqrt()
    assert float(every_tenth) > 30 * float(schedule.alphas[-1])
    deviations = betas[0].sqrt() + betas[1].sqrt()
    assert float(deviations / schedule.sigmas[1]) == pytest.approx(1.41, abs=0.1)
    f, g2 = schedule.sde(t.t)
    var = t.alpha**2 * STD**2 + t.sigma**2  # dv/dt of the ODE with half and with all of g^2
    true = (2 * f * var + g2).item()
    assert (2 * (f + 0.5 * g2 / var) * var).item() == pytest.approx(true, rel=1e-9)
    assert abs((2 * (f + g2 / var) * var).item() / true) > 2
