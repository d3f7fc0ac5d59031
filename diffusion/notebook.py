"""Notebook helpers: training in a cell, opening a run, the web page of models, TensorBoard's address."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from diffusion import data
from diffusion.data import ImageData
from diffusion.denoiser import Denoiser
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Plain
from diffusion.support import runs
from diffusion.support.configurations import bundled
from diffusion.support.console import shown
from diffusion.support.paths import home, run_root, tensorboard_address
from diffusion.training.api import fit, words
from diffusion.training.build import DiffusionCLI, quiet
from diffusion.training.compare import OtherModel
from diffusion.training.systems import NoisyClassifier

if TYPE_CHECKING:
    from diffusion.exchange.serving.server import Served

CONFIGS = {  # data set: its configurations for a GPU and for a CPU
    "Digits": ("digits", "digits"),
    "Sprites": ("sprites", "sprites"),
    "MNIST": ("mnist", "mnist_cpu"),
    "FashionMNIST": ("fashion", "fashion_cpu"),
    "CIFAR10": ("cifar10", "cifar10_cpu"),
}
SMOKE: dict[str, dict] = {  # settings for training in seconds, for tests of the notebooks
    "": {"trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1, "trainer.log_every_n_steps": 5,
         "data.limit": 320},
    "Diffusion": {"samples.n": 10, "samples.every_n_epochs": 1, "gif.frames": 10, "model.sampler.steps": 5,
                  "model.warmup": 2, "checkpoint.every_n_steps": 3},
    "AttentionUNet": {"model.net.widths": [8, 16], "model.net.attention": 1},
    "ContextUNet": {"model.net.width": 8},
    "class_path: UNet": {"model.net.width": 16, "model.net.head_width": 16},
    "captions": {"model.net.text_width": 16},
    "HalfUNet": {"model.net.width": 8},
}  # fmt: skip


def config(name: str) -> Path:
    """The configuration file for this machine of a data set, or of that name in configs/.

    Raises:
        ValueError: there is no such data set or file.
    """
    stem = CONFIGS[name][not torch.cuda.is_available()] if name in CONFIGS else name
    if (path := bundled().get(stem)) is None:
        raise ValueError(f"data {name!r}: wanted one of {', '.join(CONFIGS)}")
    return path


def parts(name: str, settings: Mapping[str, Any] | None = None) -> DiffusionCLI:
    """The model, data and trainer that `train` would build from a configuration, for inspection.

    Args:
        name, settings: see `train`.
    """
    quiet()
    return DiffusionCLI(["-c", str(config(name)), *words(settings or {})])


def opened(name: str, **options) -> ImageData:
    """A data set, downloaded if needed and possible.

    Raises:
        DataNotFound: the files are neither present nor downloadable; the message says what to do.
        ValueError: there is no such data set.
    """
    config(name)
    module = getattr(data, name)(**options)
    try:
        module.prepare_data()
        module.arrays("train")
    except data.DataNotFound as error:
        remedy = 'set data = "Digits" or data = "Sprites" in the first cell of code'
        raise data.DataNotFound(f"{error}. In this notebook: {remedy}") from None
    return module


def experiment(name: str, preset: str) -> str:
    """The name of an experiment's folder; smoke runs have a separate one.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in ("full", "smoke"):
        raise ValueError(f"preset: wanted full or smoke, got {preset!r}")
    return name if preset == "full" else f"{name}_smoke"


def train(
    name: str,
    settings: Mapping[str, Any] | None = None,
    folder: str = "",
    preset: str = "full",
    resume: str = "auto",
) -> Path:
    """`diffusion.fit` in a cell: displays progress, resumes, and stops without a traceback.

    Args:
        name: of a data set or a configuration, see `config`.
        settings: options of `diffusion fit` by their dotted names, which override the configuration.
        folder: of the experiment; the configuration's name by default.
        preset: "full", or "smoke" to train for seconds only.
        resume: "auto" resumes the newest run, or starts a new one if there is none or its model differs; "version_0"
            or a path resumes that run; "" starts a new run.

    Returns:
        The run's directory, or the experiment's if training was stopped before the first checkpoint.
    """
    file, place = config(name), run_root() / experiment(folder or config(name).stem, preset)
    given = {"trainer.devices": 1}  # a notebook kernel cannot be forked for more devices
    given |= (smoke(file) if preset == "smoke" else {}) | dict(settings or {})
    known = resume if resume in ("", "auto") or not (place / resume).is_dir() else place / resume
    try:
        return fit(file, experiment=place.name, resume=known or None, settings=given)
    except OtherModel as error:
        if resume != "auto":
            raise
        print(f"the newest run has a different model ({error.changed}): starting a new run")
        return train(name, settings, folder, preset, resume="")
    except KeyboardInterrupt:
        return stopped(place, resume)


def stopped(place: Path, resume: str) -> Path:
    """Print how to resume the newest run of an experiment, and return its folder."""
    made = [run for run in runs.versions(place) if runs.checkpoints(run)]
    if not made:
        print("stopped before the first checkpoint; run this cell again to start over")
        return place
    again = "run this cell again" if resume else 'set resume = "auto" and run this cell again'
    print(f"{again} to resume; the next cells use {shown(made[-1])} as trained so far")
    return made[-1]


def smoke(file: Path) -> dict[str, Any]:
    """Settings that shorten a configuration's training to seconds."""
    text = file.read_text()
    kind = "NoisyClassifier" if "NoisyClassifier" in text else "Diffusion"
    return {k: v for key, given in SMOKE.items() if key in ("", kind) or key in text for k, v in given.items()}


def open_or_train(
    run: str, name: str, settings: Mapping[str, Any] | None = None, folder: str = "", preset: str = "full"
) -> Path:
    """A run's directory: the given run's, else the newest finished one of an experiment, else that of a new run.

    Args:
        run: a run, experiment or checkpoint, or "".
        name, settings, folder, preset: see `train`.
    """
    place = run_root() / experiment(folder or config(name).stem, preset)
    made = [v for v in runs.versions(place) if runs.checkpoints(v) and (v / "samples" / "denoising.gif").exists()]
    if not run and not made:
        print(f"there is no finished run in {shown(place)}: training a new one")
        return train(name, settings, folder, preset)
    found = runs.directory(runs.find_checkpoint(run)) if run else made[-1]
    print(f"using the model of {shown(found)}, step {runs.newest_step(found):,}")
    return found


class Unlabelled(nn.Module):
    """A network wrapper that drops the condition and declares none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        return self.net(x, clock)


def unlabelled(pipeline: Pipeline) -> Pipeline:
    """An unconditional pipeline: the model with its null condition only. The network is shared."""
    own = pipeline.denoiser
    free = Denoiser(Unlabelled(own.net), own.schedule, own.target).eval()
    return replace(pipeline, denoiser=free, guidance=Plain(), hint=None)


@torch.no_grad()
def agreement(classifier: NoisyClassifier, x: Tensor, y: Tensor) -> float:
    """The share of images x (N, C, H, W) that a classifier, at its lowest noise, assigns to the class of y (N, K)."""
    t = classifier.schedule.level(torch.tensor(classifier.schedule.t_min, dtype=torch.float64))
    return float((classifier(t.alpha.float() * x, t).argmax(1) == y.argmax(1)).float().mean())


def proxy() -> str:
    """The URL path to a port of this machine, with %PORT% in place of the number; "" if it is reached directly."""
    if given := os.environ.get("TENSORBOARD_PROXY_URL"):
        return given
    if home() in ("notebook instance", "Studio"):
        return urlsplit(tensorboard_address("%PORT%")).path
    if prefix := os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):
        return f"{prefix}proxy/%PORT%/"
    return ""


def serve(*runs: str | Path, port: int | None = None, **options: Any) -> "Served":
    """Start the page of `diffusion serve` and return: the last line of a cell shows it, and `close()` ends it.

    Args:
        runs: run directories, experiments, checkpoint files, or folders of them; all runs by default.
        port: the first free one from 7860 by default.
        options: of `exchange.serving.server.launch`.
    """
    from diffusion.exchange.serving.server import free_port, launch

    host = options.setdefault("host", "127.0.0.1")
    port = free_port(host, port)
    options.setdefault("root_path", proxy().replace("%PORT%", str(port)))
    return launch(runs or [run_root()], port=port, **options)


def tensorboard(folder: Path, start: bool = True) -> None:
    """Open TensorBoard on a folder of runs below the cell, and print its address.

    Args:
        start: False only prints the address.
    """
    if found := proxy():
        os.environ["TENSORBOARD_PROXY_URL"] = found
    where = found.replace("%PORT%", "6006") or "http://localhost:6006/"
    print(f"TensorBoard, once started: {where}{' (below the address of this server)' if found else ''}; or run")
    print(f"  tensorboard --logdir {shlex.quote(str(shown(folder)))} --host localhost")
    if start:
        from tensorboard import notebook

        binary = Path(sys.executable).with_name("tensorboard")
        if binary.exists():  # of this environment, which may not be on PATH
            os.environ.setdefault("TENSORBOARD_BINARY", str(binary))
        notebook.start(f"--logdir {shlex.quote(str(folder))} --host localhost")
