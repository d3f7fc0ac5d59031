"""A model with the ideal network for Gaussian pixels whose mean depends on the label."""

import torch
from torch import nn

from diffusion import Denoiser, Pipeline
from diffusion.bench.analytic import Gaussian
from diffusion.denoiser.targets import V
from diffusion.guidance import Unbounded
from diffusion.noise import Cosine
from diffusion.samplers import DDIM

MEANS, STD, SHAPE = (-0.5, 0.0, 0.4), 0.3, (1, 4, 4)
SCHEDULE = Cosine()


class Net(nn.Module):
    """Outputs the prediction of the ideal denoiser of N(MEANS[y], STD^2); the null row is label 1."""

    num_classes, context_dim = len(MEANS), 0

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, clock, y=None, keep=None):
        self.calls += 1
        t = SCHEDULE.level((clock.double() + 1) / 1000).like(x)
        y = torch.ones(len(x), dtype=torch.long) if y is None else y
        y = y if keep is None else y.where(keep, 1)
        pred = Gaussian(torch.tensor(MEANS)[y][:, None, None, None], STD)(x, t)
        return V().of(pred.x0, pred.eps, t)


def model(sampler=None):
    denoiser = Denoiser(Net(), SCHEDULE, V()).eval()
    return Pipeline(denoiser, sampler or DDIM(50), clamp=Unbounded(), shape=SHAPE)


def data(n, label=1, seed=0):
    draws = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return MEANS[label] + STD * draws
