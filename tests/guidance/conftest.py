"""Classes of known distribution, for which the score of any tilted density is known."""

import pytest
import torch
from torch import nn

from diffusion.bench.analytic import Gaussian, Mixture
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import X0
from diffusion.noise import VP

MEANS = torch.tensor([[[[-0.5, 0.2]]], [[[0.6, -0.1]]], [[[0.1, 0.7]]]], dtype=torch.float64)  # (K, 1, 1, 2)
STDS = torch.tensor([0.2, 0.3, 0.15], dtype=torch.float64)
WEIGHTS = (0.5, 0.2, 0.3)
SHAPE, NAMES = (1, 1, 2), ("a", "b", "c")


class World:
    """A mixture whose components are the classes, on a schedule."""

    def __init__(self, schedule=None, widen=1.0):
        self.schedule = schedule or VP()
        self.all = Mixture(MEANS, STDS * widen, WEIGHTS)
        self.each = [Gaussian(m, s * widen) for m, s in zip(MEANS, STDS, strict=True)]

    def log_joint(self, x, t):
        """log p_t(x, y = k) of each class (B, K)."""
        logs = [math_log(w) + g.log_density(x, t) for w, g in zip(WEIGHTS, self.each, strict=True)]
        return torch.stack(logs, 1)

    def tilted(self, x, t, y, scale):
        """The score of p_t(x) p_t(y | x)^scale, by differentiating the density."""
        x = x.clone().requires_grad_()
        joint = self.log_joint(x, t)
        log = joint.logsumexp(1) + scale * joint.log_softmax(1).gather(1, y[:, None])[:, 0]
        return torch.autograd.grad(log.sum(), x)[0]


def math_log(w):
    return torch.tensor(w, dtype=torch.float64).log()


class Net(nn.Module):
    """The ideal network of a World, which receives 1000 t; counts the images it evaluates."""

    def __init__(self, world, labelled=True):
        super().__init__()
        self.world, self.num_classes, self.asked = world, 3 if labelled else 0, 0

    def forward(self, x, clock, y=None, keep=None):
        assert self.num_classes or y is None, "an unconditional network was given labels"
        self.asked += len(x)
        t = self.world.schedule.level(clock.double() / 1000)
        x0 = self.world.all(x, t).x0
        if y is None:
            return x0
        each = torch.stack([g(x, t).x0 for g in self.world.each], 1)
        given = each[torch.arange(len(x)), y]
        return given if keep is None else torch.where(keep[:, None, None, None], given, x0)


class Ideal(nn.Module):
    """The ideal classifier of noisy images."""

    def __init__(self, world):
        super().__init__()
        self.world, self.schedule, self.shape, self.class_names = world, world.schedule, SHAPE, NAMES

    def forward(self, x, t):
        return self.world.log_joint(x, t)


class Setting:
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.world = World()
        self.net, self.free = Net(self.world), Net(self.world, labelled=False)
        self.denoiser = Denoiser(self.net, self.world.schedule, X0())
        self.unconditional = Denoiser(self.free, self.world.schedule, X0())
        self.classifier = Ideal(self.world)
        self.x = torch.randn(30, *SHAPE, generator=generator, dtype=torch.float64)
        self.y = torch.arange(30) % 3
        self.cond = Condition(self.y)

    def level(self, t):
        return self.world.schedule.level(torch.as_tensor(t, dtype=torch.float64))

    def worse(self):
        """A denoiser of the same data, blurred."""
        return Denoiser(Net(World(widen=2.0)), self.world.schedule, X0())


@pytest.fixture
def setting():
    return Setting()
