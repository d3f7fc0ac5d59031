"""Checkpoints that are there when they are needed: written whole, often, and at the end."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from diffusion.tools import atomic


class Checkpoint(pl.callbacks.Checkpoint):
    """checkpoints/last.ckpt and the newest step files, every n steps and at the last step of training.

    Saved inside the training loop, also at its end: a file written after `fit` would resume in the wrong epoch.

    Args:
        every_n_steps: optimizer steps between two checkpoints, >= 1.
        keep: step files that are kept, >= 1; last.ckpt is another name of the newest.
    Raises:
        ValueError: every_n_steps < 1 or keep < 1.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 1) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"Checkpoint: every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}")
        self.every_n_steps, self.keep = every_n_steps, keep
        self._saved = -1  # gradient accumulation calls back several times at one step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        ends = trainer.should_stop or step >= trainer.estimated_stepping_batches
        due = ends or step % self.every_n_steps == 0
        if not due or step == self._saved or trainer.fast_dev_run or trainer.log_dir is None:
            return
        self._saved = step
        directory = Path(trainer.log_dir) / "checkpoints"
        path = directory / f"step{step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            link(path, directory / "last.ckpt")
            for old in sorted(directory.glob("step*.ckpt"))[: -self.keep]:
                old.unlink()


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of the file `source` in one step; a copy where there are no hard links."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())


class DurableIO(TorchCheckpointIO):
    """Write beside the target, sync, rename: a kill or a full disk leaves the old file or the new one, never half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        try:
            with atomic(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except RuntimeError as error:  # torch's own word for a failed write
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(f"{path}: could not be written (is the disk full?); the last good one is kept") from error
