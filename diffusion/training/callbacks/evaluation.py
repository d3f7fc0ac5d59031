"""Sample quality during training, logged to TensorBoard and metrics.jsonl; the best checkpoint is kept."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch

from diffusion.generation.sheets import examples
from diffusion.metrics.base import Figure, metric, mixed
from diffusion.metrics.evaluator import Evaluator, repeated
from diffusion.metrics.extractor import to_labels
from diffusion.training.callbacks.guard import look
from diffusion.training.callbacks.pictures import averaged


class Evaluation(pl.Callback):
    """Evaluate samples of the averaged weights every few epochs: to eval/* in TensorBoard, and metrics.jsonl.

    The samples have the same seed and labels each time, so that the curve reflects the model and not the draw. An
    evaluation that would raise the total evaluation time above `budget` of the training time is postponed to the next
    scheduled epoch. checkpoints/best.ckpt is replaced when `best` improves beyond the interval of the previous best.

    Args:
        every_n_epochs: epochs between two evaluations; 0 is off.
        metrics: names of metrics, see `diffusion evaluate --help`.
        n: samples, >= 2.
        budget: largest share of the training time that evaluations may take, > 0.
        best: the figure that selects best.ckpt; "" keeps none.
        features: auto, an extractor's run, or Inception:FILE.
        judge: (features, device) -> the judge of the data; linked from the data.
    Raises:
        ValueError: a number out of range, or an unknown metric.
    """

    state_key = "Evaluation"  # of its part of a checkpoint

    def __init__(
        self,
        every_n_epochs: int = 0,
        metrics: Sequence[str] = ("frechet", "consistency"),
        n: int = 500,
        budget: float = 0.1,
        best: str = "frechet",
        features: str = "auto",
        judge: Callable[[str, torch.device], Evaluator] | None = None,
    ) -> None:
        if every_n_epochs < 0 or n < 2 or budget <= 0:
            raise ValueError(
                "Evaluation: every_n_epochs must be at least 0, n at least 2 and budget positive; got "
                f"{every_n_epochs}, {n} and {budget}"
            )
        self.every_n_epochs, self.metrics, self.n, self.budget = every_n_epochs, tuple(metrics), n, budget
        self.best, self.features, self.judge = best, features, judge
        self.chosen = [metric(name) for name in metrics]
        names = [name for kind in self.chosen for name in kind.better]
        if every_n_epochs and best and best not in names:
            raise ValueError(f"Evaluation: best {best!r} is not measured; there are: {', '.join(names)}, or ''")
        self.evaluator: Evaluator | None = None  # once opened, on the first process only
        self.record: dict = {}  # the best so far: value, low, high, step
        self.spent = self.last = 0.0  # seconds of all evaluations, and of the last
        self._began = time.perf_counter()

    def state_dict(self) -> dict:
        return {"record": dict(self.record)}

    def load_state_dict(self, state: dict) -> None:
        self.record = dict(state["record"])

    def open(self, device: torch.device) -> None:
        """Open the judge, on the first process and before training, since it may have to train a classifier."""
        if self.every_n_epochs and self.judge is not None:
            self.evaluator = self.judge(self.features, device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self.spent, self.last = time.perf_counter(), 0.0, 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        off = not self.every_n_epochs or trainer.fast_dev_run or trainer.log_dir is None
        if off or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        began = time.perf_counter()
        training = began - self._began - self.spent
        late = self.last > 0 and self.spent + self.last > self.budget * training
        if trainer.strategy.broadcast(late):
            return
        figures = self.measure(trainer, pl_module)
        if figures is not None:
            self.write(trainer, pl_module, figures, time.perf_counter() - began)
        improved = trainer.strategy.broadcast(figures is not None and self.improves(figures, trainer.global_step))
        if improved:
            look(trainer)
            trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints" / "best.ckpt")
        self.last = time.perf_counter() - began
        self.spent += self.last

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Figure] | None:
        """The figures on the first process, None on the others; each process draws its share of the samples."""
        train = trainer.datamodule.store("train")[1]
        conditional = pl_module.pipeline.conditional
        y = repeated(train[mixed(to_labels(train))], self.n) if conditional else None
        share = -(-self.n // trainer.world_size)
        first = trainer.global_rank * share
        image = None
        if pl_module.pipeline.hint:
            y, image, *_ = examples(pl_module.pipeline, trainer.datamodule, self.n, pl_module.seed + 1)
        mine, hints = (v if v is None else repeated(v, first + share)[first:] for v in (y, image))
        frame = None
        with averaged(trainer, pl_module), torch.random.fork_rng(devices=[]):
            parts = []
            for at in range(0, share, 500):
                part, its = (v if v is None else v[at : at + 500] for v in (mine, hints))
                n, number = min(500, share - at), first + at
                for frame in pl_module.pipeline.frames(n, part, pl_module.seed + 1, first=number, image=its):  # noqa: B007
                    pass
                parts.append(pl_module.pipeline.scaling.decode(frame.x))
        images = torch.cat(parts)
        if trainer.world_size > 1:
            bits = pl_module.all_gather(images.view(torch.uint8))  # uint16 is not gathered
            images = bits.flatten(0, 1).view(images.dtype)
        if self.evaluator is None:
            return None
        samples = self.evaluator.describe(images[: self.n].cpu(), y)
        usable = [m for m in self.chosen if not m.missing(samples, self.evaluator.reference)]
        return self.evaluator.figures(samples, usable)

    def improves(self, figures: list[Figure], step: int) -> bool:
        """Whether `best` improves beyond the interval of the previous best; if so, it is recorded."""
        found = next((f for f in figures if f.name == self.best), None)
        if found is None:
            return False
        sign = -1 if found.better == "high" else 1
        if self.record and sign * found.value >= sign * self.record["low" if sign > 0 else "high"]:
            return False
        self.record = {"value": found.value, "low": found.low, "high": found.high, "step": step}
        return True

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, figures: list[Figure], seconds: float) -> None:
        """Append one line per figure to metrics.jsonl, and log it."""
        sampler, extractor = pl_module.pipeline.sampler, self.evaluator.extractor
        said = {
            "step": trainer.global_step, "epoch": trainer.current_epoch, "weights": "ema", "n": self.n,
            "sampler": type(sampler).__name__, "steps": sampler.steps, "seed": pl_module.seed + 1,
            "scale": getattr(pl_module.pipeline.guidance, "scale", 1.0),
            "extractor": f"{extractor.name}-{extractor.hash}",
            "reference": self.evaluator.reference.hash, "seconds": round(seconds, 2),
        }  # fmt: skip
        with open(Path(trainer.log_dir) / "metrics.jsonl", "a") as file:
            for f in figures:
                line = {k: v for k, v in f._asdict().items() if k != "name"}
                file.write(json.dumps({"metric": f.name, **line, **said}) + "\n")
        if trainer.logger:
            values = {f"eval/{f.name}": f.value for f in figures}
            trainer.logger.log_metrics(values | {"eval/seconds": seconds}, trainer.global_step)
        for f in figures:
            if f.alert:
                pl.utilities.rank_zero_info(f"step {trainer.global_step:,}: {f.alert}")
