"""Signals end a run within seconds: after the step under way, with a checkpoint, before any validation."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl

from diffusion.training.callbacks.ranks import Agreement

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal has ended training: exit code 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1.

    Args:
        signum: the signal.
        validating: a pass of validation was cut short, and is to be done again from its start.
    """

    def __init__(self, signum: int, validating: bool = False) -> None:
        super().__init__(130 if signum == signal.SIGINT else 143)
        self.signum, self.validating = signum, validating
        self.run: Path | None = None  # the first process's folder, once `fit` has seen this


class Signals(pl.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 raise `Stopped` where a run can go on from exactly; `Checkpoint` then saves.

    In a training step that is after the optimizer's step and its log (with gradient accumulation, after its last
    batch); in validation after the batch; in pictures and evaluations at the end of an epoch at once, for they change
    nothing. With several processes all stop at the same batch, whichever of them was told. A second Ctrl-C raises
    KeyboardInterrupt at once. Lightning's own handlers, which end with exit code 0 or a run's validation, are replaced
    while training lasts.
    """

    def __init__(self) -> None:
        self.signum: int | None = None  # the first signal that came
        self.idle = False  # nothing of the training state is changing
        self._whole, self._step = True, 0  # was the last batch an optimizer step's last?
        self._agreement, self._common = Agreement(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signum, self.idle, self._whole, self._step = None, False, True, trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                signal.signal(number, self.receive)  # Lightning puts the old ones back
        if trainer.received_sigterm:  # before we listened
            self.signum = signal.SIGTERM
        self._agreement.begin()

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Take note; act at once only where nothing can be lost, or at the second Ctrl-C."""
        again, self.signum = self.signum is not None, self.signum or signum
        if again and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if not again:
            name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            more = ", Ctrl-C again quits at once" if signum == signal.SIGINT else ""
            os.write(2, f"\n{name}: stopping after this step{more}\n".encode())  # print may be in use just now
            if self.idle:
                raise Stopped(signum)

    def poll(self, trainer: pl.Trainer, validating: bool = False) -> None:
        """Raise `Stopped` if any process got a signal: all of them at the same call."""
        if self._agreement.any(self.signum is not None):
            raise Stopped(self.signum or signal.SIGTERM, validating)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        self.idle = False
        if self._whole:
            self.poll(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        self._whole, self._step = trainer.global_step != self._step, trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._common = self._agreement.least(int(min(sum(trainer.num_val_batches), 10**9)))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        done = batch_idx + sum(trainer.num_val_batches[:dataloader_idx])
        if trainer.state.fn == "fit" and not trainer.sanity_checking and done < self._common:  # all have this batch
            self.poll(trainer, validating=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.poll(trainer)
        self.idle = trainer.world_size == 1  # else the others would wait for ever

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.idle = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.idle = False
        self.poll(trainer)
        self.idle = trainer.world_size == 1
