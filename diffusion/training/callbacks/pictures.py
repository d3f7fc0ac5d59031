"""Pictures during training: sample grids from fixed seeds, and the denoising GIF at the end."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from torch.distributed.tensor import DTensor

from diffusion import pictures
from diffusion.generation.sheets import beside, columns_of, denoising, examples
from diffusion.training.callbacks.ema import EMA


def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule):
    """A context in which the module has its averaged weights, if the run keeps any."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    return ema.applied(pl_module) if ema else nullcontext()


def sharded(pl_module: pl.LightningModule) -> bool:
    """Whether the weights are sharded over processes, so that no single process can evaluate the network."""
    return any(isinstance(p, DTensor) for p in pl_module.parameters())


class Samples(pl.Callback):
    """Draw the same pictures (seed, labels) every few epochs and at the end: to samples/*.png and TensorBoard.

    Skipped if the weights are sharded over processes.

    Args:
        every_n_epochs: epochs between two grids, >= 1; 0 draws at the end only.
        n: pictures in the grid, >= 1. Classes come in turn.
        columns: images per row; 0 puts one class in each column if there are 20 classes or fewer.
    """

    def __init__(self, every_n_epochs: int = 1, n: int = 64, columns: int = 0) -> None:
        if every_n_epochs < 0 or n < 1:
            raise ValueError(
                f"Samples: every_n_epochs must be at least 0 and n at least 1, got {every_n_epochs} and {n}"
            )
        self.every_n_epochs, self.n, self.columns = every_n_epochs, n, columns

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.fast_dev_run:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fast_dev_run:
            self.draw(trainer, pl_module, again=False)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, again: bool = True) -> None:
        """Sample and write the grid of this step; all processes call, the first one draws.

        Args:
            again: replace the file of this step, if there is one.
        """
        directory = trainer.log_dir  # which asks the first process: all have to, or none
        if not trainer.is_global_zero or directory is None or sharded(pl_module):
            return
        path = Path(directory) / "samples" / f"step{trainer.global_step:08d}.png"
        if path.exists() and not again:
            return
        pipeline = pl_module.pipeline
        with averaged(trainer, pl_module):
            given = examples(pipeline, trainer.datamodule, self.n, pl_module.seed)
            images = pipeline.picture(pipeline.sample(self.n, given.y, pl_module.seed, image=given.image))
        images, each = beside(pipeline, images, given)
        sheet = pictures.grid(images, self.columns * each or columns_of(pipeline, each))
        pictures.save_png(sheet, path)
        if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
            rgb = np.asarray(pictures.pillow(sheet).convert("RGB"))
            trainer.logger.experiment.add_image("samples", rgb, trainer.global_step, dataformats="HWC")


class Gif(pl.Callback):
    """Write samples/denoising.gif when training ends.

    Args:
        n: pictures in each frame, >= 1.
        frames: frames from noise to image, >= 2.
        fps: frames per second.
        hold: seconds that the last frame stays.
    """

    def __init__(self, n: int = 16, frames: int = 40, fps: float = 15.0, hold: float = 2.0) -> None:
        if n < 1 or frames < 2:
            raise ValueError(f"Gif: n must be at least 1 and frames at least 2, got {n} and {frames}")
        self.n, self.frames, self.fps, self.hold = n, frames, fps, hold

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        directory = trainer.log_dir  # which asks the first process: all have to, or none
        if trainer.fast_dev_run or not trainer.is_global_zero or directory is None or sharded(pl_module):
            return
        with averaged(trainer, pl_module):
            given = examples(pl_module.pipeline, trainer.datamodule, self.n, pl_module.seed)
            frames = denoising(pl_module.pipeline, self.n, frames=self.frames, seed=pl_module.seed, given=given)
        pictures.save_film(frames, Path(directory) / "samples" / "denoising.gif", self.fps, self.hold)
