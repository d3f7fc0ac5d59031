"""Pictures of a run as it goes: sample grids on fixed seeds, and the denoising GIF at the end."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from diffusion import viz
from diffusion.callbacks.ema import EMA


def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule):
    """A context in which the module has its averaged weights, if the run keeps any."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    return ema.applied(pl_module) if ema else nullcontext()


def sharded(pl_module: pl.LightningModule) -> bool:
    """Are its weights spread over processes? One alone cannot draw or ask anything then."""
    return any(isinstance(p, DTensor) for p in pl_module.parameters())


class Samples(pl.Callback):
    """Draw the same pictures (seed, labels) every few epochs and at the end: to samples/*.png and TensorBoard.

    Not of weights that are sharded over processes.

    Args:
        every_n_epochs: epochs between two grids, >= 1; 0 draws at the end only.
        n: pictures in the grid, >= 1. Classes come in turn.
        columns: pictures a row; 0 puts one class in a column where there are 20 classes or fewer.
    """

    def __init__(self, every_n_epochs: int = 1, n: int = 64, columns: int = 0) -> None:
        if every_n_epochs < 0 or n < 1:
            raise ValueError(f"Samples: every_n_epochs >= 0 and n >= 1, got {every_n_epochs} and {n}")
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
        with averaged(trainer, pl_module):
            images = viz.to_uint8(pl_module.sample(self.n, seed=pl_module.seed))
        sheet = viz.grid(images, self.columns or columns_of(pl_module))
        viz.save_png(sheet, path)
        if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
            rgb = np.asarray(viz.pillow(sheet).convert("RGB"))
            trainer.logger.experiment.add_image("samples", rgb, trainer.global_step, dataformats="HWC")


def columns_of(model: pl.LightningModule) -> int | None:
    """One column a class where a model has 2 to 20 of them; else a square."""
    kinds = model.num_classes or model.context_dim
    return kinds if 2 <= kinds <= 20 else None


class Gif(pl.Callback):
    """Write samples/denoising.gif when training ends.

    Args:
        n: pictures in each frame, >= 1.
        frames: frames from noise to image, >= 2.
        fps: frames a second.
        hold: seconds that the last frame stays.
    """

    def __init__(self, n: int = 16, frames: int = 40, fps: float = 15.0, hold: float = 2.0) -> None:
        if n < 1 or frames < 2:
            raise ValueError(f"Gif: n >= 1 and frames >= 2, got {n} and {frames}")
        self.n, self.frames, self.fps, self.hold = n, frames, fps, hold

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        directory = trainer.log_dir  # which asks the first process: all have to, or none
        if trainer.fast_dev_run or not trainer.is_global_zero or directory is None or sharded(pl_module):
            return
        with averaged(trainer, pl_module):
            frames = denoising(pl_module, self.n, frames=self.frames, seed=pl_module.seed)
        viz.save_gif(frames, Path(directory) / "samples" / "denoising.gif", self.fps, self.hold)


def denoising(
    model: pl.LightningModule,
    n: int,
    y: torch.Tensor | None = None,
    frames: int = 40,
    seed: int = 0,
    scale: int | None = None,
    columns: int | None = None,
    **options,
) -> list[np.ndarray]:
    """The frames of a walk from pure noise to n images, as grids.

    Args:
        frames: at most this many, spread evenly over the sampler's steps; noise first, the result last.
        options: passed on to `Diffusion.frames` (sampler, guidance).
    """
    x, _ = model.start(n, seed)
    states = [viz.to_uint8(x / model.denoiser.schedule.prior_std)]
    for frame in model.frames(n, y, seed, **options):
        # At unit variance: a process that does not preserve it would be all black and white.
        states.append(viz.to_uint8(frame.x / float(frame.t.alpha**2 + frame.t.sigma**2) ** 0.5))
    # Noise hardly compresses: half the width of a grid keeps the file small.
    return [viz.grid(states[k], columns, scale=scale, width=320) for k in viz.spread(len(states), frames)]
