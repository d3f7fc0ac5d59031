"""The extractor that judges samples of a data set, trained by the data set's own configuration."""

import shlex
from collections.abc import Callable

import pytorch_lightning as pl

from diffusion.data import ImageData
from diffusion.judging.judge import folder, no_extractor, recipe
from diffusion.support import runs
from diffusion.support.console import tool
from diffusion.training.callbacks import Evaluation


def train_extractor(data: ImageData, fit: Callable[..., object]) -> None:
    """Train a data set's extractor on all of its images, as `diffusion fit` does with its configuration.

    Args:
        fit: `training.run.train`, which itself calls this function for a run that is evaluated during training.
    """
    print(f"{no_extractor(data)}: training one (once, minutes)", flush=True)
    fit([*recipe(data), "--trainer.devices", "1"], final=False)


def judge(trainer: pl.Trainer, data: ImageData, writes: bool) -> None:
    """Open the judge of a training's `Evaluation`, if it is enabled.

    Args:
        writes: whether this process writes the run's files, and therefore measures.
    Raises:
        ValueError: several processes, and no extractor of the data yet.
    """
    evaluation = next((c for c in trainer.callbacks if isinstance(c, Evaluation) and c.every_n_epochs), None)
    if evaluation is None:
        return
    if evaluation.features == "auto" and trainer.world_size > 1 and not runs.versions(folder(data)):
        raise ValueError(
            f"evaluation during training: {no_extractor(data)}; train it in one process first: "
            f"{tool('diffusion')} fit {shlex.join(recipe(data))}"
        )
    if writes:
        data.prepare_data()
        evaluation.open(trainer.strategy.root_device)
