"""Untrained models whose networks do something: every parameter that is initially 0 is drawn."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import ClassifierFree
from diffusion.nets import AttentionUNet, ContextUNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM, DDPM


def drawn(net):
    """The network with parameters that are initially 0 drawn anew."""
    for p in net.parameters():
        if p.abs().max() < 1e-3:
            nn.init.normal_(p, std=0.1)
    return net.eval().to(memory_format=torch.channels_last)  # as a loaded model


def pipeline(net, schedule=None, target=None, **parts):
    """A pipeline of 8x8 images around a network."""
    torch.manual_seed(0)
    denoiser = Denoiser(drawn(net), schedule or Cosine(), target or V()).eval()
    return replace(Pipeline(denoiser, shape=(net.channels, 8, 8)), **parts)


def digits():
    """The network of the digits, narrower."""
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16, 16), heads=2, ones=True, num_classes=10)
    names = tuple(map(str, range(10)))
    return pipeline(net, sampler=DDIM(10), guidance=ClassifierFree(1.5), class_names=names)


def context():
    """A network of context vectors."""
    torch.manual_seed(1)
    names = ("hero", "food", "spell")
    return pipeline(
        ContextUNet(3, 16, 2, context_dim=3), sampler=DDIM(10), guidance=ClassifierFree(2.0), class_names=names
    )


def learned():
    """A network with a learned variance and its sampler."""
    torch.manual_seed(2)
    return pipeline(AttentionUNet(1, (8, 16), heads=2, attention=1, learn_variance=True), sampler=DDPM(10, "learned"))


MODELS = {"digits": digits, "context": context, "learned": learned}


@pytest.fixture(
    scope="session",
    params=[n if n == "digits" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def model(request):
    """Each of the models."""
    return MODELS[request.param]()
