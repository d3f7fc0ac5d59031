"""The machine during training: its figures at fixed intervals, in watch.csv, TensorBoard and a plot."""

import time
import warnings
from pathlib import Path

import pytorch_lightning as pl

from diffusion.pictures import plots
from diffusion.support import gauges, watched
from diffusion.support.console import number
from diffusion.support.files import atomic
from diffusion.support.gauges import Figures

FEWEST = 3  # rows of a plot


class Watch(pl.Callback):
    """Record speed, memory, power, temperature and clocks of the device, and what the host does, as `gauges.FIGURES`.

    A row is written after the first batch that ends at least `every` seconds after the last row's turn, and one at the
    end of training. Speed, power and energy are those of training alone: validation and pictures are left out. Energy
    per image is mean power times seconds over images. Nothing waits for the device, and training is the same with and
    without it. Each process watches its own device and writes its own file, and the first one writes the curves and the
    plot. A resumed run appends, so rows of steps that a kill undid remain.

    Args:
        every: seconds between two rows, >= 0; 0 records nothing.
    Raises:
        ValueError: every < 0.
    """

    def __init__(self, every: float = 10.0) -> None:
        if every < 0:
            raise ValueError(f"Watch: every must be at least 0 seconds, got {every}")
        self.every = every
        self._path: Path | None = None
        self._rows: list[Figures] = []  # of this training
        self._drawn = ""  # the plot, or why there is none

    # --- which time counts -------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._path, self._rows, self._drawn = None, [], ""
        if not self.every or trainer.fast_dev_run or trainer.logger is None:
            return
        self._path = Path(trainer.log_dir) / watched.name_of(trainer.global_rank)  # a collective call
        self._device = pl_module.device
        self._board, self._host = gauges.board_of(self._device), gauges.Host()
        self._next = time.perf_counter() + self.every
        self._paused = True
        self._empty()

    def _empty(self) -> None:
        self._images, self._seconds, self._joules = 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        if self._path is not None and self._paused:
            self._paused, self._since = False, time.perf_counter()
            self._counter = self._board and self._board.joules(self._since)

    def _pause(self, *args) -> None:
        if self._path is not None and not self._paused:
            self._spend(time.perf_counter())
            self._paused = True

    on_validation_start = on_train_epoch_end = _pause

    def _spend(self, now: float) -> None:
        """Add the energy since the last call."""
        counter = self._board and self._board.joules(now)
        if counter is not None and self._counter is not None:
            self._joules += counter - self._counter
        self._counter = counter

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        if self._path is None:
            return
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now
        self._images += len(batch[0])
        if now >= self._next:
            self._next += self.every * (1 + (now - self._next) // self.every)
            self._spend(now)
            self.write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause()
        if self._path is not None and self._images:
            self.write(trainer)
        if self._path is not None and trainer.is_global_zero:
            self._drawn = self.draw(self._path)

    # --- what is written ---------------------------------------------------------------------------------

    def row(self) -> Figures:
        """The figures since the last row, and those of this moment."""
        found = gauges.allocated(self._device) | self._host.read()
        if self._board:
            found |= self._board.read()
            found.pop("gpu_watts", None)  # of this moment; below is that of training
        if self._seconds:
            found["images_per_s"] = self._images / self._seconds
            if self._board and self._counter is not None:
                found["gpu_watts"] = self._joules / self._seconds
                found["joules_per_image"] = found["gpu_watts"] * self._seconds / self._images
        return found

    def write(self, trainer: pl.Trainer) -> None:
        """Write a row to the file and to TensorBoard. If the file cannot be written, only the recording ends."""
        found = self.row()
        self._empty()
        self._rows.append(found)
        try:
            watched.append(self._path, {"time": time.time(), "step": trainer.global_step} | found)
        except OSError as error:
            warnings.warn(f"{self._path}: the machine is no longer recorded ({error.strerror})", stacklevel=1)
            self._path = None
            return
        curves = {f"watch/{k}": v for k, v in found.items() if not isinstance(v, str)}
        if "gpu_slowed" in found:
            curves["watch/gpu_slowed"] = float(found["gpu_slowed"] != gauges.NOT_SLOWED)
        trainer.logger.log_metrics(curves, trainer.global_step)

    def draw(self, path: Path) -> str:
        """Draw all rows of a run, if there are enough; returns the file's name, or why there is none."""
        rows = watched.read(path)
        if len(rows) < FEWEST:
            return ""
        try:
            figure = plots.watched(rows)
            with atomic(path.with_name(watched.PLOT)) as temporary:
                figure.savefig(temporary, dpi=110)
        except (ModuleNotFoundError, OSError) as error:
            return f"no plot: {error}"
        return watched.PLOT

    @property
    def said(self) -> str:
        """Means of this training and the files, in one line; "" if nothing was recorded."""
        if self._path is None or not self._rows:
            return ""
        parts = []
        for name, unit in (("gpu_watts", "W"), ("joules_per_image", "J per image"), ("gpu_busy_percent", "% busy"),
                           ("cpu_cores", "cores"), ("resident_mib", "MiB resident")):  # fmt: skip
            values = [row[name] for row in self._rows if name in row]
            if values:
                parts.append(f"{number(sum(values) / len(values))} {unit}")
        files = ", ".join(filter(None, (self._path.name, self._drawn)))
        return f"machine, on average: {', '.join(parts)} ({files})\n"
