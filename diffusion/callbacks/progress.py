"""Progress that shows where a run is: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time

import pytorch_lightning as pl


def clock(seconds: float) -> str:
    """1:02:03, 2:03 or 0:03."""
    m, s = divmod(int(seconds + 0.5), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


class Rate(pl.Callback):
    """Measure images/s, and log it as train/images_per_s at the trainer's logging steps.

    Time in validation and previews does not count.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.started = time.perf_counter()
        self._last: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.seconds, self.started, self._last = 0, 0.0, time.perf_counter(), None

    def on_train_batch_start(self, *args) -> None:
        if self._last is None:
            self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now
        self.images += len(batch[0]) * trainer.world_size
        if trainer.logger and trainer.global_step % trainer.log_every_n_steps == 0:
            trainer.logger.log_metrics({"train/images_per_s": self.per_second}, trainer.global_step)

    def _pause(self, *args) -> None:
        self._last = None

    on_validation_start = on_train_epoch_end = _pause

    @property
    def per_second(self) -> float:
        """Images a second since training began."""
        return self.images / self.seconds if self.seconds else 0.0


class Lines(pl.Callback):
    """A line every few seconds (epoch, step, loss, images/s, time left): for logs, where a bar would be a mess.

    Args:
        every: seconds between two lines, > 0.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self._next = 0.0
        self._first = (0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._next = time.perf_counter() + self.every
        self._first = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        now = time.perf_counter()
        if now < self._next or not trainer.is_global_zero:
            return
        self._next = now + self.every
        step, total, (first, since) = trainer.global_step, trainer.estimated_stepping_batches, self._first
        left = (now - since) / max(1, step - first) * (total - step)
        rate = next((c.per_second for c in trainer.callbacks if isinstance(c, Rate)), 0.0)
        shown = {k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("loss")}
        losses = "  ".join(f"{k} {v:.4f}" for k, v in sorted(shown.items()))
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        print(
            f"epoch {trainer.current_epoch + 1}{epochs}  step {step:,}/{total:,}  {losses}  "
            f"{rate:,.0f} images/s  {clock(left)} left",
            flush=True,
        )


def interactive() -> bool:
    """Is there a terminal or a notebook to draw a bar in?"""
    return sys.stdout.isatty() or "ipykernel" in sys.modules
