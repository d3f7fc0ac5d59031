"""Two untrained models as runs: digits with classes, and small sprites with context vectors."""

import os
from dataclasses import fields

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.generation.pipeline import PARTS, Pipeline
from diffusion.guidance import ClassifierFree
from diffusion.nets import AttentionUNet, ContextUNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.specs import spec


def write(path, net, names, steps):
    """Write a checkpoint of a network whose parameters that are initially 0 are drawn anew."""
    for p in net.parameters():
        if p.abs().max() < 1e-3:
            nn.init.normal_(p, std=0.1)
    denoiser = Denoiser(net, Cosine(), V())
    pipeline = Pipeline(denoiser, DDIM(steps), ClassifierFree(1.5), shape=(net.channels, 8, 8), class_names=names)
    parts = {name: spec(getattr(pipeline, name)) for name in PARTS}
    parts |= {name: spec(getattr(denoiser, name)) for name in ("net", "schedule", "target")}
    scaling = {f.name: getattr(pipeline.scaling, f.name) for f in fields(pipeline.scaling)}
    plain = {"shape": list(pipeline.shape), "class_names": list(names), "seed": 0, "scaling": scaling}
    state = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "hyper_parameters": parts | plain, "global_step": steps, "epoch": 1}, path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with `runs`, and a secret and a model beside it, to which links in `runs` lead."""
    top = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    digits = AttentionUNet(1, (8, 16), heads=2, attention=1, ones=True, num_classes=10)
    numbers = tuple(map(str, range(10)))
    write(top / "runs/digits/version_0/checkpoints/step00000010.ckpt", digits, numbers, 10)
    os.link(
        top / "runs/digits/version_0/checkpoints/step00000010.ckpt",
        top / "runs/digits/version_0/checkpoints/last.ckpt",
    )
    sprites = ContextUNet(3, 16, 2, context_dim=3)
    write(top / "runs/sprites/version_0/checkpoints/last.ckpt", sprites, ("hero", "food, raw", "spell"), 10)
    write(top / "outside/version_0/checkpoints/last.ckpt", digits, numbers, 10)
    (top / "secret.txt").write_text("a secret")
    (top / "runs/leads_out").symlink_to(top / "outside", target_is_directory=True)
    (top / "runs/one/checkpoints").mkdir(parents=True)
    (top / "runs/one/checkpoints/last.ckpt").symlink_to(top / "outside/version_0/checkpoints/last.ckpt")
    (top / "runs/secret.txt").symlink_to(top / "secret.txt")
    return top
