"""Progress display: a bar on a terminal, a bar with pictures in a notebook, lines elsewhere."""

import html
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion.support.console import clock


class Rate(pl.Callback):
    """Measure images/s without validation and previews, and log it as train/images_per_s at the logging steps."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._last = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.seconds, self._last = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now
        self.images += len(batch[0]) * trainer.world_size
        if trainer.logger and trainer.global_step % trainer.log_every_n_steps == 0:
            trainer.logger.log_metrics({"train/images_per_s": self.per_second}, trainer.global_step)

    def _go_on(self, *args) -> None:
        self._last = time.perf_counter()

    on_train_epoch_start = on_validation_end = _go_on

    @property
    def per_second(self) -> float:
        """Images per second since training began."""
        return self.images / self.seconds if self.seconds else 0.0


class Lines(pl.Callback):
    """Print a line every few seconds (epoch, step, loss, images/s, time left), for logs, where a bar is unreadable.

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
        print(told(trainer, *self._first), flush=True)


def told(trainer: pl.Trainer, first: int, since: float) -> str:
    """Epoch, step, losses, images/s and the time left.

    Args:
        first: the step at the time `since`, on `time.perf_counter`'s clock.
    """
    step, total = trainer.global_step, trainer.estimated_stepping_batches
    left = (time.perf_counter() - since) / max(1, step - first) * (total - step)
    rate = next((c.per_second for c in trainer.callbacks if isinstance(c, Rate)), 0.0)
    shown = {k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("loss")}
    losses = "  ".join(f"{k} {v:.4f}" for k, v in sorted(shown.items()))
    epoch = f"{trainer.current_epoch + 1}"
    if trainer.max_epochs and trainer.max_epochs > 0:  # after the last epoch Lightning counts one more
        epoch = f"{min(trainer.current_epoch + 1, trainer.max_epochs)}/{trainer.max_epochs}"
    return f"epoch {epoch}  step {step:,}/{total:,}  {losses}  {rate:,.0f} images/s  {clock(left)} left"


class Live(pl.Callback):
    """A bar and the newest grid of samples below the cell, each updated in place.

    Args:
        every: seconds between two updates, >= 0.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every = every
        self._first, self._next = (0, 0.0), 0.0
        self._bar = self._grid = self._seen = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first, self._next = (trainer.global_step, time.perf_counter()), 0.0
        self._bar = self.show(self.bar(trainer))
        self._grid = self._seen = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + self.every
            self.draw(trainer)

    def draw(self, trainer: pl.Trainer, *args) -> None:
        """Update the bar and the grid."""
        if self._bar is None:
            return
        self._bar.update(self.bar(trainer), raw=True)
        newest = max(Path(trainer.log_dir).glob("samples/step*.png"), default=None) if trainer.log_dir else None
        if newest is None or newest == self._seen:
            return
        self._seen, picture = newest, {"image/png": newest.read_bytes(), "text/plain": f"samples of {newest.stem}"}
        if self._grid is None:
            self._grid = self.show(picture)
        else:
            self._grid.update(picture, raw=True)

    on_train_epoch_end = on_train_end = on_exception = draw

    @staticmethod
    def show(bundle: dict[str, Any]) -> Any:
        """Display something that can be updated later; None outside a notebook."""
        from IPython.display import display

        return display(bundle, raw=True, display_id=True)

    def bar(self, trainer: pl.Trainer) -> dict[str, str]:
        """The bar as HTML and as text."""
        said, step, total = told(trainer, *self._first), trainer.global_step, trainer.estimated_stepping_batches
        bar = f'<progress value="{step}" max="{total}" style="width: 16em"></progress>'
        return {"text/html": f"{bar} <code>{html.escape(said)}</code>", "text/plain": said}
