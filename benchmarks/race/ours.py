"""This project's entries: `diffusion fit` with the data set's configuration, its steps as many as fit in the time."""

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

import diffusion
from benchmarks.race.clustered import KINDS, clusters
from benchmarks.race.images import CONFIGS, SMALLER, batch
from benchmarks.recipes import (
    QUIET,
    CPUTime,  # noqa: F401  named in the options of the measurement
)
from diffusion.training.api import words
from diffusion.training.run import train

TIMED = 24  # steps of the measurement before, of which the first are dropped
SPARE = 0.98  # of the planned steps are taken, since a step's time varies
Given = Literal["nothing", "labels", "clusters"]  # what the network is conditioned on


class Spent(pl.Callback):
    """Seconds of this process from the first step's start to the end of training, and of the clock on the wall."""

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.begun = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.cpu, self.wall = time.process_time() - self.begun[0], time.perf_counter() - self.begun[1]


class Trained(NamedTuple):
    """A finished training: its folder, steps, batch, seconds and parameters."""

    folder: Path
    steps: int
    batch: int
    cpu: float
    wall: float
    parameters: int


def fitted(data: str, given: Given, steps: int, seed: int, out: Path, experiment: str, timer: str):
    """A training of a number of steps, with a callback that takes the time."""
    settings = QUIET | {
        "trainer.max_steps": steps, "seed_everything": seed, "out": str(out), "experiment": experiment,
        "trainer.callbacks": [{"class_path": timer}], "trainer.enable_checkpointing": True,
        "data.batch_size": batch(data),
    }  # fmt: skip
    if given == "nothing":
        settings |= {"data.labels": False}
    if given == "clusters":
        settings |= {"data.class_path": f"{KINDS[data].__module__}.{KINDS[data].__name__}"}
    run = train(["-c", f"configs/{CONFIGS[data]}.yaml", *words(settings)], final=False)
    return run, next(c for c in run.trainer.callbacks if type(c).__name__ == timer.rpartition(".")[2])


def command(data: str) -> str:
    """The training as a command, without its seed and number of steps."""
    smaller = f" --data.batch_size {SMALLER[data]}" if data in SMALLER else ""
    return f"fit -c configs/{CONFIGS[data]}.yaml{smaller}"


def trained(data: str, given: Given, minutes: float, seed: int, out: Path) -> Trained:
    """A training that takes about so many minutes of this process; its learning rate falls to 0 at the end.

    The time of finding clusters is part of it.
    """
    name = f"{data}-{given}"
    cpu, wall = clusters(KINDS[data], None, seed)[2:] if given == "clusters" else (0.0, 0.0)
    step = fitted(data, given, TIMED, seed, out / "timing", name, "benchmarks.recipes.CPUTime")[1].seconds
    steps = max(1, int(SPARE * (60 * minutes - cpu) / step))
    run, spent = fitted(data, given, steps, seed, out / "runs", f"{name}-{minutes:g}m-seed{seed}", f"{__name__}.Spent")
    count = sum(p.numel() for p in run.model.denoiser.net.parameters())
    seconds = cpu + spent.cpu, wall + spent.wall
    return Trained(run.folder, run.trainer.global_step, run.data.batch_size, *seconds, count)


def asked(data: str, given: Given, y: Tensor, n: int, seed: int) -> Tensor | None:
    """The labels of n samples, as frequent as in the training images: theirs y, or their clusters."""
    if given == "clusters":
        y = clusters(KINDS[data], None, seed).y.sort().values
    return None if given == "nothing" else y[torch.arange(n) * len(y) // n]


def sampler_of(data: str, given: Given) -> dict[str, Any]:
    """The sampler for short trainings.

    Steps, guidance and batch of larger images were chosen on Fashion-MNIST, on seed 0, by the race's own judge, and are
    taken over to MNIST and CIFAR-10.
    """
    stronger = {} if data == "digits" or given == "nothing" else {"scale": 3.0}
    return {"sampler": "UniPC", "steps": 10} | stronger


def sampled(folder: Path, how: dict[str, Any], labels: Tensor | None, n: int, seed: int) -> Tensor:
    """n images (n, C, H, W) in [-1, 1], by a sampler."""
    chosen = {} if labels is None else {"labels": [int(k) for k in labels]}
    return diffusion.sample(folder, n=n, seed=seed, batch_size=n, device="cpu", **chosen, **how)
