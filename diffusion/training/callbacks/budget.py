"""Time-limited training, with a learning-rate schedule that follows the time left."""

import re
import time
from collections.abc import Iterator
from itertools import islice

import pytorch_lightning as pl

from diffusion.generation.sheets import examples
from diffusion.support.console import clock
from diffusion.training.callbacks.pictures import Gif, Samples

UNITS = {"h": 3600, "m": 60, "s": 1}
LARGE = 0.25  # of the time; a message is printed if the final pictures take more
SHARE = 0.1  # of the remaining steps, until the next plan


def seconds(text: str) -> float:
    """The seconds in a typed duration: 90s, 20m, 1h30m; a number alone is minutes.

    Raises:
        ValueError: not a positive duration.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text) if text else None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        total = 60 * float(text)
    else:
        total = sum(float(v or 0) * UNITS[u] for v, u in zip(found.groups(), "hms", strict=True)) if found else 0
    if total <= 0:
        raise ValueError(f"budget: wanted a time such as 90s, 20m or 1h30m, got {text!r}")
    return total


class Budget(pl.Callback):
    """Choose the number of steps so that training and the final pictures are done when the time is up.

    Steps are planned from the time per step in the second half of the training so far, validation and grids included,
    and planned again after each tenth of the remaining steps, so a machine that slows down takes fewer. The learning
    rate follows the planned number of steps. Time spent before a resume counts. The number of steps depends on the
    clock: this is the only option that makes runs irreproducible.

    Args:
        total: total time in seconds, > 0.
        step: initial estimate of the seconds per step.
        started: when the command began, on `time.perf_counter`'s clock.
    """

    state_key = "Budget"  # of its part of a checkpoint

    def __init__(self, total: float, step: float, started: float) -> None:
        self.total, self.step, self.started = total, step, started
        self.before = 0.0  # seconds spent before this process
        self._ending = 0.0  # seconds that the pictures after training take
        self._next = 0
        self._seen: list[tuple[float, int]] = []  # (time, step) at each plan

    @property
    def spent(self) -> float:
        """Seconds spent on the run, earlier processes included."""
        return self.before + time.perf_counter() - self.started

    def state_dict(self) -> dict:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict) -> None:
        self.before = state["spent"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ending = sum(pictures(trainer, pl_module))
        if self._ending > LARGE * self.total and trainer.is_global_zero:
            print(
                f"budget: the final grid and GIF take {clock(self._ending)} of it; --samples.n 16 --gif.n 4 "
                "leaves more for training"
            )
        self._seen = [(time.perf_counter(), trainer.global_step)]
        self.plan(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        step = trainer.global_step
        if step < self._next or step == self._seen[-1][1]:
            return
        now = time.perf_counter()
        self._seen.append((now, step))
        half = self._seen[0][0] + (now - self._seen[0][0]) / 2
        since, first = next(v for v in reversed(self._seen) if v[0] <= half)
        self.step = (now - since) / (step - first)
        self.plan(trainer)

    def plan(self, trainer: pl.Trainer) -> None:
        """Set the number of steps; all processes set the first one's."""
        done = trainer.global_step
        steps = max(0, round((self.total - self.spent - self._ending) / self.step))
        trainer.fit_loop.epoch_loop.max_steps, self._next = trainer.strategy.broadcast(
            (done + steps, done + max(1, int(SHARE * steps)))
        )


def pictures(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[float]:
    """Seconds that the GIF and the grid at the end of training take each, by two steps of it."""
    for n in (c.n for c in trainer.callbacks if isinstance(c, (Gif, Samples))):
        given = examples(pl_module.pipeline, trainer.datamodule, n, pl_module.seed)
        walk = pl_module.pipeline.frames(n, given.y, pl_module.seed, image=given.image)
        next(walk)
        begun = time.perf_counter()
        taken = len(list(islice(walk, 2)))
        yield (time.perf_counter() - begun) / max(1, taken) * pl_module.pipeline.sampler.steps
        walk.close()
