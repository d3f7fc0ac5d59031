"""Checkpoints, written atomically: every n steps, at the end, and when a signal arrives."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from diffusion.support import runs
from diffusion.support.files import atomic, link
from diffusion.support.seal import seal
from diffusion.support.signals import Stopped
from diffusion.training.callbacks.guard import look


class Checkpoint(pl.callbacks.Checkpoint):
    """checkpoints/last.ckpt and the newest step files, every n steps, at the last step and on a signal.

    A checkpoint holds the state after a whole optimizer step, saved once everything that belongs to the step is done:
    its log, and a validation and end of epoch that follow it. A resumed run therefore neither repeats nor omits a
    point of its curves. The lengths of the run's logs are saved too (`runs.rewind`).

    Args:
        every_n_steps: optimizer steps between two checkpoints, >= 1.
        keep: number of step files kept, >= 1; last.ckpt is a link to the newest. With 2 an older one remains if the
            newest is damaged.
    Raises:
        ValueError: every_n_steps < 1 or keep < 1.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"Checkpoint: every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}")
        self.every_n_steps, self.keep = every_n_steps, keep
        self._made = False  # a file, by this process
        self._saved = self._step = -1  # gradient accumulation calls back several times at one step
        self._loops: dict = {}  # Lightning's counters as they were after that step, which is where it resumes best

    # --- when -------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = self._step = trainer.global_step
        self._loops = {}
        epoch = trainer.fit_loop.epoch_progress.current
        if epoch.ready == epoch.processed:  # resumed at the end of an epoch: Lightning would not count the next one,
            trainer.fit_loop.reset_restart_stage()  # and resume in a wrong epoch the next time

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._loops = trainer.fit_loop.state_dict()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = trainer.should_stop or self._step >= trainer.estimated_stepping_batches
        if ends or self._step % self.every_n_steps == 0:
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()  # discards an interrupted pass

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # `log_dir` is a collective call, which other processes do not join after an error of this one alone.
        removed = of_a_file(exception) and trainer.log_dir and self._removed(Path(trainer.log_dir))
        if not isinstance(exception, Stopped) and not (removed and trainer.global_step == self._step):
            return  # the state after an error in mid-step is undefined; keep the last good file
        if getattr(exception, "validating", False):
            if trainer.global_step >= trainer.fit_loop.max_steps >= 0:
                return  # Lightning would consider the run complete and skip this validation
            self._loops = in_validation(trainer.fit_loop.state_dict())
        try:
            self.save(trainer)
        except OSError as error:
            warnings.warn(f"no new checkpoint: {error}; the last good one is kept", stacklevel=1)

    # --- what -------------------------------------------------------------------------------------------

    def save(self, trainer: pl.Trainer) -> None:
        """Write this step's file, if there is none yet, give it the name last.ckpt, and remove the oldest."""
        step = self._step
        if step == self._saved or not self._loops or trainer.fast_dev_run or trainer.log_dir is None:
            return
        self._saved = step
        run = Path(trainer.log_dir)
        if trainer.is_global_zero and self._removed(run):
            warnings.warn(
                f"{run}: the run's folder was removed; recreating it for this checkpoint, its other files are lost",
                stacklevel=1,
            )
        path = run / "checkpoints" / f"step{step:08d}.ckpt"
        look(trainer)  # never write a non-finite state
        trainer.save_checkpoint(path)
        self._made = True
        if trainer.is_global_zero:
            link(path, path.with_name("last.ckpt"))
            for old in sorted(path.parent.glob("step*.ckpt"))[: -self.keep]:
                old.unlink(missing_ok=True)

    def _removed(self, run: Path) -> bool:
        """Whether the run's folder was removed; a grid or a log may have recreated it."""
        return not run.exists() or self._made and not (run / "checkpoints").exists()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if not self._loops or trainer.global_step != self._step:
            return
        checkpoint["loops"]["fit_loop"] = self._loops
        for logger in trainer.loggers:
            with suppress(OSError):  # the folder is gone; training will stop at the next log
                logger.save()
        if trainer.log_dir is not None:
            checkpoint["logs"] = runs.logs(Path(trainer.log_dir))


def of_a_file(error: BaseException) -> bool:
    """Whether a file caused an error. Lightning raises a ValueError from the error of TensorBoard's thread."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


def in_validation(loops: dict) -> dict:
    """Lightning's counters as if validation had just begun, so that it restarts from its first batch."""
    progress = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    begun = {"total": dict(progress), "current": dict(progress), "is_last_batch": False}
    return loops | {"epoch_loop.val_loop.batch_progress": begun}


class DurableIO(TorchCheckpointIO):
    """Write beside the target, seal, sync, rename: a kill or a full disk leaves the old file or the new one.

    Loading verifies the checksum first and reads only tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        try:
            with atomic(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
                seal(temporary)
        except (OSError, RuntimeError) as error:
            # torch's messages for a failed write
            torch_s = "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
            if isinstance(error, RuntimeError) and not torch_s:
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "is the disk full?"
            kind = type(error) if isinstance(error, OSError) else OSError
            raise kind(
                getattr(error, "errno", None) or 0,
                f"the checkpoint could not be written ({reason}); the last good one is kept, free disk space and "
                "continue with --resume",
                str(path),
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return (
            super().load_checkpoint(path, *args, **kwargs) if "://" in str(path) else runs.open_checkpoint(Path(path))
        )
