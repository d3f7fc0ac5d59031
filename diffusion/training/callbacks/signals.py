"""Signals end a run within seconds: after the current step, with a checkpoint, before any validation."""

import signal

import pytorch_lightning as pl
from torch.utils.hooks import RemovableHandle

from diffusion.support.signals import Listener, Stopped
from diffusion.training.callbacks.ranks import Agreement


class Signals(pl.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 raise `Stopped` at a point that can be resumed exactly; `Checkpoint` then saves.

    In a training step that is after the optimizer's step, its log and the validation that follows it (with gradient
    accumulation, after its last batch); in validation after the batch; in pictures and evaluations at the end of an
    epoch before the next call of the denoiser, since they change nothing. It is never raised elsewhere: an
    exception inside a foreign lock, such as that of TensorBoard's writer, may leave it locked. With several processes
    all stop at the same batch, whichever of them received the signal. A second Ctrl-C raises KeyboardInterrupt at once.
    Lightning's own handlers, which end with exit code 0 or a run's validation, are replaced while training lasts.

    Args:
        listener: receives the signals; by default one that listens during training only.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener or Listener()
        self._step = -1  # optimizer steps when the last batch began
        self._agreement, self._common = Agreement(), 0
        self._hook: RemovableHandle | None = None  # checks for a signal at each call of the denoiser

    # --- before the first step: what comes now has nothing to save ---------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size == 1:  # one of several would leave the others waiting
            self.listener.check()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1:
            self.listener.check()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = -1
        self.listener.install()  # replaces Lightning's, which restores the previous ones
        self.listener.wait()
        if trainer.received_sigterm:
            self.listener.note(signal.SIGTERM)
        self._agreement.begin()

    # --- then ---------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        """Between two batches: raise `Stopped`, on all processes at once, unless a step is half done."""
        if trainer.global_step == self._step:  # gradient accumulation: the last batch ended no step
            return
        self._step = trainer.global_step
        if self._agreement.any(self.listener.signum is not None):
            raise Stopped(self.listener.signum or signal.SIGTERM)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._common = self._agreement.least(int(min(sum(trainer.num_val_batches), 10**9)))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        done = batch_idx + sum(trainer.num_val_batches[:dataloader_idx])
        if trainer.state.fn == "fit" and not trainer.sanity_checking and done < self._common:  # all have this batch
            self._poll(validating=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._poll()
        self._watch(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._unwatch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._poll()
        self._watch(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._unwatch()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._unwatch()

    def _watch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check at each call of the denoiser from now on; not with several processes, where the others would wait."""
        denoiser = getattr(pl_module, "denoiser", None)
        if self._hook is None and denoiser is not None and trainer.world_size == 1:
            self._hook = denoiser.register_forward_pre_hook(lambda *args: self.listener.check())

    def _unwatch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _poll(self, validating: bool = False) -> None:
        """Raise `Stopped` if any process received a signal, on all of them at the same call."""
        if self._agreement.any(self.listener.signum is not None):
            raise Stopped(self.listener.signum or signal.SIGTERM, validating)
