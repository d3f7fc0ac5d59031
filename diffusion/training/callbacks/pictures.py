"""Pictures of a run as it goes: sample grids on fixed seeds, and the denoising GIF at the end."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from diffusion import pictures
from diffusion.training.callbacks.ema import EMA


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
            given = examples(pl_module, trainer.datamodule, self.n, pl_module.seed)
            images = pictures.to_uint8(pl_module.sample(self.n, given.y, pl_module.seed, image=given.image))
        images, each = beside(pl_module, images, given)
        sheet = pictures.grid(images, self.columns * each or columns_of(pl_module, each))
        pictures.save_png(sheet, path)
        if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
            rgb = np.asarray(pictures.pillow(sheet).convert("RGB"))
            trainer.logger.experiment.add_image("samples", rgb, trainer.global_step, dataformats="HWC")


class Given(NamedTuple):
    """What pictures are asked for by: labels (n,) or contexts (n, D), hints (n, K, h, w); the truth (n, C, H, W)."""

    y: torch.Tensor | None = None
    image: torch.Tensor | None = None
    truth: torch.Tensor | None = None


def examples(model: pl.LightningModule, data: pl.LightningDataModule | None, n: int, seed: int = 0) -> Given:
    """All classes in turn; for a model of hints or of nameless vectors, those of the first n test images.

    Raises:
        ValueError: a model of hints, and data that has no images at hand.
    """
    named = not model.context_dim or model.class_names
    arrays = getattr(data, "arrays", None)
    if model.hint is None and (named or arrays is None):
        return Given(model.in_turn(n))
    if arrays is None:
        raise ValueError(f"{type(model.hint).__name__}: there are no images to make hints of; the data has no `arrays`")
    images, y = (v.cpu() for v in arrays("test"))
    first = torch.arange(n) % len(images)
    truth = images[first].float() / 127.5 - 1
    return Given(model.condition(y[first]).y, model.shown(truth, range(n), seed), truth if model.hint else None)


def beside(model: pl.LightningModule, results: np.ndarray, given: Given) -> tuple[np.ndarray, int]:
    """Each result (n, H, W, C) uint8 between its hint and the truth, if there are any, and how many that is."""
    kinds = [results]
    if given.image is not None:
        kinds.insert(0, pictures.to_uint8(model.hint.show(given.image, model.shape)))
    if given.truth is not None:
        kinds.append(pictures.to_uint8(given.truth))
    return np.stack(kinds, axis=1).reshape(-1, *results.shape[1:]), len(kinds)


def columns_of(model: pl.LightningModule, each: int = 1) -> int | None:
    """One column a class where a model has 2 to 20 of them; 4 where pictures are beside others; else a square."""
    kinds = model.num_classes or (model.context_dim if model.class_names else 0)
    return 4 * each if each > 1 else kinds if 2 <= kinds <= 20 else None


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
            given = examples(pl_module, trainer.datamodule, self.n, pl_module.seed)
            frames = denoising(pl_module, self.n, frames=self.frames, seed=pl_module.seed, given=given)
        pictures.save_film(frames, Path(directory) / "samples" / "denoising.gif", self.fps, self.hold)


def denoising(
    model: pl.LightningModule,
    n: int,
    y: torch.Tensor | None = None,
    frames: int = 40,
    seed: int = 0,
    scale: int | None = None,
    columns: int | None = None,
    given: Given | None = None,
    **options,
) -> list[np.ndarray]:
    """The frames of a walk from pure noise to n images, as grids.

    Args:
        y: labels (n,) or contexts (n, D); all classes in turn by default.
        given: y and more, if there is more: images beside which the walk is then shown.
        frames: at most this many, spread evenly over the sampler's steps; noise first, the result last.
        options: passed on to `Diffusion.frames` (sampler, guidance).
    """
    given = given or Given(y)
    x, _ = model.start(n, seed)
    states = [pictures.to_uint8(x / model.denoiser.schedule.prior_std)]
    for frame in model.frames(n, given.y, seed, image=given.image, **options):
        # At unit variance: a process that does not preserve it would be all black and white.
        states.append(pictures.to_uint8(frame.x / float(frame.t.alpha**2 + frame.t.sigma**2) ** 0.5))
    states, each = zip(*(beside(model, states[k], given) for k in pictures.spread(len(states), frames)), strict=True)
    columns = columns or (columns_of(model, each[0]) if each[0] > 1 else None)
    # Noise hardly compresses: half the width of a grid keeps the file small.
    return [pictures.grid(state, columns, scale=scale, width=320) for state in states]
