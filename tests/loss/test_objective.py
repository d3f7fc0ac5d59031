import pytest
import torch
from torch import nn

from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import X0, Eps, V
from diffusion.guidance import ClassifierFree
from diffusion.likelihood import vlb
from diffusion.loss.objective import Objective
from diffusion.noise import Cosine, Flow, Linear, Uniform
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM


class Recorder(nn.Module):
    """Returns a fixed map and records its inputs."""

    num_classes = 10

    def forward(self, x, clock, y=None, keep=None):
        self.asked = (x, clock, y, keep)
        self.out = torch.tanh(0.7 * x.roll(1, -1) + clock[:, None, None, None] / 1000)
        return self.out


@pytest.mark.parametrize("target", [Eps(), X0(), V()])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_default_loss_is_the_mse_of_the_networks_output(target, schedule):
    net, x0 = Recorder(), torch.rand(32, 1, 8, 8) * 2 - 1
    draws, same = StepDraws(0, 0, 0), StepDraws(0, 0, 0)
    terms = Objective()(Denoiser(net, schedule, target), x0, Condition(), draws.normal, draws.uniform)
    eps = same.normal(x0)
    t = schedule.level(schedule.quantile(same.uniform(32))).like(x0)
    torch.testing.assert_close(net.asked[0], t.alpha * x0 + t.sigma * eps)
    expected = (target.of(x0, eps, t) - net.out).square().flatten(1).mean(1)
    torch.testing.assert_close(terms.mse, expected, rtol=2e-4, atol=1e-6)
    assert float(terms.loss) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_perfect_network_has_zero_loss():
    """The ideal output for a data set of one image: x0 is known, and so is eps."""
    x0 = torch.rand(1, 1, 4, 4).expand(64, 1, 4, 4) * 2 - 1

    class Perfect(nn.Module):
        def forward(self, x, clock, y=None, keep=None):
            t = Linear().level((clock.double() + 1) / 1000).like(x)
            return (x - t.alpha * x0) / t.sigma

    assert float(Objective()(Denoiser(Perfect(), Linear()), x0).loss) < 1e-6


def test_labels_are_dropped_per_image():
    net, x0, y = Recorder(), torch.zeros(4000, 1, 2, 2), torch.arange(4000) % 10
    Objective(drop=0.2)(Denoiser(net, Linear()), x0, Condition(y))
    keep = net.asked[3]
    assert keep.dtype == torch.bool and 0.17 < 1 - keep.float().mean() < 0.23
    Objective(drop=0.0)(Denoiser(net, Linear()), x0, Condition(y))
    assert net.asked[3] is None


@pytest.mark.parametrize("drop", [-0.1, 1.1])
def test_objective_rejects_a_drop_outside_the_unit_interval(drop):
    with pytest.raises(ValueError, match="probability"):
        Objective(drop=drop)


def test_denoiser_takes_one_level_or_one_per_image():
    denoiser, x = Denoiser(Recorder(), Linear()), torch.randn(6, 1, 4, 4)
    level = Linear().level(torch.tensor(0.3, dtype=torch.float64))
    many = Linear().level(torch.full((6,), 0.3, dtype=torch.float64))
    one, six = denoiser(x, level), denoiser(x, many)
    torch.testing.assert_close(one.x0, six.x0)
    torch.testing.assert_close(level.alpha * one.x0 + level.sigma * one.eps, x.double(), check_dtype=False)
    with pytest.raises(ValueError, match="one noise level or one per image"):
        denoiser(x, Linear().level(torch.rand(3).double()))


class Halves(nn.Module):
    """2C channels: x0 from one parameter, the variance from another."""

    def __init__(self):
        super().__init__()
        self.mean, self.var = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x, clock, y=None, keep=None):
        return torch.cat([self.mean * x, torch.tanh(self.var + x)], dim=1)


def gradients(objective, schedule, x0):
    net, draws = Halves(), StepDraws(0, 0, 0)
    terms = objective(Denoiser(net, schedule, X0()), x0, Condition(), draws.normal, draws.uniform)
    return terms, torch.autograd.grad(terms.loss, list(net.parameters()), allow_unused=True)


@pytest.mark.parametrize("schedule", [Linear(40), Flow()], ids=["discrete", "continuous"])
def test_the_hybrid_loss_trains_the_variance_and_leaves_the_mean_alone(schedule):
    x0 = torch.rand(64, 1, 4, 4) * 2 - 1
    simple, (mean, none) = gradients(Objective(), schedule, x0)
    hybrid, (same, var) = gradients(Objective(vlb=0.25), schedule, x0)
    torch.testing.assert_close(same, mean)
    assert float(none) == 0 and float(var.abs()) > 0
    torch.testing.assert_close(hybrid.mse, simple.mse)
    assert hybrid.vlb.shape == (64,) and simple.vlb is None
    torch.testing.assert_close(hybrid.loss, simple.loss + 0.25 * hybrid.vlb.mean())


def test_vlb_in_training_estimates_the_bound_of_the_whole_chain():
    """T times the mean term at random t is the sum over the chain, less the prior's term."""
    schedule = Linear(40)
    x0 = torch.rand(1, 1, 4, 4).expand(20_000, 1, 4, 4) * 2 - 1
    denoiser = Denoiser(Halves(), schedule, X0())
    with torch.no_grad():
        found = Objective(vlb=1.0)(denoiser, x0).vlb
        exact = torch.stack(list(vlb.terms(denoiser, x0[:2000], schedule, variance="learned")))[:-1].sum(0).mean()
    assert float(found.mean()) == pytest.approx(float(exact), abs=4 * float(found.std()) / 20_000**0.5)


def test_vlb_requires_a_learned_variance():
    with pytest.raises(ValueError, match="learn_variance"):
        Objective(vlb=0.001)(Denoiser(Recorder(), Linear()), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 0"):
        Objective(vlb=-1)


def test_offset_noise_has_the_documented_covariance():
    """eps + 0.5 z with one z per channel: variance 1.25, covariance 0.25 within a channel, none between channels."""
    net, x0 = Recorder(), torch.zeros(20_000, 2, 1, 2)
    Objective(offset=0.5, times=AtOne())(Denoiser(net, Flow(), V()), x0)
    cov = torch.cov(net.asked[0].flatten(1).T)  # pixels (c0 p0, c0 p1, c1 p0, c1 p1); at t = 1 x is the noise
    block = torch.tensor([[1.25, 0.25], [0.25, 1.25]])
    torch.testing.assert_close(cov, torch.block_diag(block, block), rtol=0, atol=0.04)


class AtOne(Uniform):
    def __call__(self, u, schedule):
        return torch.ones_like(u)


class Remembers(nn.Module):
    """Outputs half of its previous prediction, plus one."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, x, clock, y=None, keep=None):
        noisy, guess = x.chunk(2, dim=1)
        self.shown.append(guess)
        return 1 + 0.5 * guess


@pytest.mark.parametrize("probability, calls", [(0.0, 1), (1.0, 2)])
def test_self_conditioning_in_training_adds_one_evaluation(probability, calls):
    net, x0 = Remembers(), torch.zeros(4, 1, 2, 2)
    terms = Objective(self_condition=probability)(Denoiser(net, Linear(), X0()), x0)
    assert len(net.shown) == calls
    assert torch.equal(net.shown[0], torch.zeros_like(x0))
    assert torch.equal(net.shown[-1], torch.full_like(x0, probability))
    assert terms.mse.shape == (4,)


def test_self_conditioning_state_belongs_to_one_walk():
    """1 + previous / 2 is 1, 1.5, 1.75, ...; a new walk restarts from zeros; guidance doubles them."""
    net = Remembers()
    denoiser = Denoiser(net, Linear(), X0())
    for _ in range(2):
        walk = DDIM(4).iterate(denoiser.walk().bind(Condition()), torch.randn(3, 1, 2, 2), Linear())
        assert [float(f.x0.mean()) for f in walk] == pytest.approx([1, 1.5, 1.75, 1.875])
    guided = ClassifierFree(2.0)(denoiser.walk(), Condition(torch.zeros(3, dtype=torch.long)))
    frames = list(DDIM(3).iterate(guided, torch.randn(3, 1, 2, 2), Linear()))
    assert float(frames[-1].x0.mean()) == pytest.approx(1.75)
    assert len(net.shown[-1]) == 6
    assert Denoiser(Recorder(), Linear()).walk().__class__ is Denoiser
