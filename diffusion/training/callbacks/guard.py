"""Protection against NaN and infinity: non-finite steps are skipped and the run rolls back or stops."""

import json
import warnings
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffusion.noise.level import Level
from diffusion.support import runs
from diffusion.support.files import atomic
from diffusion.training.callbacks.advice import Advice
from diffusion.training.callbacks.ema import EMA, whole
from diffusion.training.callbacks.posthoc import PostHoc


class NonFinite(FloatingPointError):
    """Training has met a NaN or an infinity more often than `Guard.retries` allows."""


class Seen(NamedTuple):
    """A recent training batch, held by reference."""

    step: int
    epoch: int
    batch: int
    loss: Tensor
    error: Tensor | None  # per image, if the module reports it
    level: Level | None


class Guard(pl.Callback):
    """Check the gradients for NaN and infinity, and everything that a checkpoint holds before it is written.

    A step with a non-finite gradient is skipped (see `systems.checked.AdamW`). The host checks for one every
    `log_every_n_steps` steps (on a CPU every step) and before a checkpoint is written. It writes the step, the batch,
    its images and their noise levels to nonfinite-stepN.json in the run directory.

    Weights, averaged weights and optimizer are then restored from the newest valid checkpoint of the run. Data, noise
    and learning rate continue from the current step: they are functions of the step, so repeating the same steps
    would fail again. Before the first checkpoint the current state, which excludes the step, is kept.
    Source: Chowdhery et al. 2022, arXiv:2204.02311, sec. 5.1, who rolled back and skipped the batches.

    Args:
        retries: number of times that a run may roll back before it stops, >= 0.
    Raises:
        ValueError: retries < 0.
    """

    state_key = "Guard"  # of its part of a checkpoint

    def __init__(self, retries: int = 1) -> None:
        if retries < 0:
            raise ValueError(f"Guard: retries must be at least 0, got {retries}")
        self.retries = retries
        self.used: list[int] = []  # steps at which the run rolled back
        self._bad: Tensor | None = None  # first bad step since the last check, -1 if none
        self._recent: deque[Seen] = deque(maxlen=1000)
        self._last = self._step = 0  # steps of the last batch and of the next one

    def state_dict(self) -> dict:
        return {"used": list(self.used)}

    def load_state_dict(self, state: dict) -> None:
        self.used = list(state["used"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bad = torch.full((), -1, device=pl_module.device)
        self._last = self._step = trainer.global_step
        self._recent.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        step, now = self._step, trainer.global_step
        outputs = outputs if isinstance(outputs, dict) else {"loss": torch.zeros(())}
        loss = outputs["loss"].detach()
        self._recent.append(
            Seen(step, trainer.current_epoch, batch_idx, loss, outputs.get("error"), outputs.get("level"))
        )
        bad = None
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            # The scaler skips steps itself, by design, while it searches for the largest scale.
            bad = ~loss.isfinite()
        elif now != step:
            bad = getattr(trainer.optimizers[0], "bad", None)
        if bad is not None:
            self._bad = torch.where(bad & (self._bad < 0), step, self._bad)
        self._last, self._step = step, now
        free = trainer.world_size == 1 and pl_module.device.type == "cpu"
        if free or now != step and now % trainer.log_every_n_steps == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer, pl_module)

    # --- recovery ----------------------------------------------------------------------------

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, thorough: bool = False) -> None:
        """Check the device's record of bad steps; all processes reach the same result.

        Args:
            thorough: check weights, averages and optimizer state too.
        Raises:
            NonFinite: something is not finite and no rollback is left.
        """
        if self._bad is None:
            return
        step = int(self._bad)
        lost = poisoned(trainer, pl_module, thorough) if thorough or step >= 0 else []
        if trainer.world_size > 1:
            found = torch.tensor([step, len(lost)], device=pl_module.device)
            step, count = trainer.strategy.reduce(found, reduce_op="max").tolist()
            lost = lost or ["on another process"] * bool(count)
        if step < 0 and not lost:
            while self._recent and self._recent[0].step < trainer.global_step:  # keep the batches of an unfinished step
                self._recent.popleft()
            return
        found = self.describe(trainer, pl_module, step if step >= 0 else self._last, lost)
        self._bad.fill_(-1)
        self._recent.clear()
        self.go_back(trainer, pl_module, *found)

    def describe(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int, lost: list[str]
    ) -> tuple[int, str, Path | None]:
        """The step, a one-line summary, and the file with the details."""
        loader, schedule = trainer.train_dataloader, getattr(getattr(pl_module, "denoiser", None), "schedule", None)
        mine = [
            account(seen, loader, trainer.global_rank, schedule is not None)
            for seen in self._recent
            if seen.step == step
        ]
        everyone = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        batches = [b for part in everyone for b in part]
        path, directory = None, trainer.log_dir
        if directory is not None:
            path = Path(directory) / f"nonfinite-step{step}.json"
            if trainer.is_global_zero:
                with atomic(path) as temporary:
                    temporary.write_text(json.dumps({"step": step, "weights": lost, "batches": batches}, indent=1))
        return step, summary(step, batches, lost), path

    def go_back(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int, said: str, path: Path | None
    ) -> None:
        """Roll back to the newest valid checkpoint of this run, or raise NonFinite."""
        where = f"; see {path}" if path else ""
        if len(self.used) >= self.retries:
            before = f"; the run had rolled back at step {', '.join(map(str, self.used))}" if self.used else ""
            raise NonFinite(
                f"{said}{where}{before}. Lower model.lr or raise model.warmup if the loss grew before, look at these "
                "images if it did not, and train in 32-true or bf16-mixed; the last checkpoint is valid: resume from it"
            )
        self.used.append(step)
        file = trainer.strategy.broadcast(newest(path.parent) if path else None)
        if file is None:
            if poisoned(trainer, pl_module, thorough=True):
                raise NonFinite(f"{said}{where}. There is no checkpoint to roll back to")
            done = "the step was skipped; there is no checkpoint yet, continuing with the next batch"
        else:
            at = restore(trainer, pl_module, file)
            done = f"weights, EMA and optimizer rolled back to step {at:,}; data and noise continue"
        if trainer.is_global_zero:
            warnings.warn_explicit(f"{said}{where}; {done}", Advice, "step", step, registry={})


def account(seen: Seen, loader: Any, rank: int, levels: bool) -> dict:
    """The record of a batch, in plain types."""
    said = {"rank": rank, "epoch": seen.epoch, "batch": seen.batch, "loss": str(float(seen.loss)), "images": None}
    images = loader.indices(seen.epoch, seen.batch).tolist() if hasattr(loader, "indices") else None
    said["images"] = images
    if seen.error is not None and levels:
        error, t = seen.error, seen.level
        bad = (~error.isfinite()).nonzero().flatten().tolist()
        said["bad"] = [images[i] for i in bad] if images else bad
        said["t"] = [round(v, 6) for v in t.t.flatten().tolist()]
        said["log_snr"] = [round(v, 4) for v in t.log_snr.flatten().double().clamp(-1e4, 1e4).tolist()]
        said["t_of_bad"] = [said["t"][i] for i in bad]
    return said


def summary(step: int, batches: list[dict], lost: list[str]) -> str:
    """One-line summary of a non-finite step."""
    if lost and not batches:
        return f"step {step:,}: the state is not finite ({', '.join(lost[:3])})"
    what = "the gradient or the loss is not finite"
    at = "; ".join(f"epoch {b['epoch'] + 1}, batch {b['batch']}" for b in batches[:1])
    bad = [i for b in batches for i in b.get("bad", [])]
    t = sorted(v for b in batches for v in b.get("t_of_bad") or b.get("t", []))
    total = sum(len(b["images"] or b.get("t", [])) for b in batches)
    if bad and len(bad) < total:
        which = f", training image{'s' * (len(bad) > 1)} {', '.join(map(str, bad[:8]))}{' ...' * (len(bad) > 8)}"
    else:
        which = f", all {total} images" if bad else ", no single image"
    levels = f" at t = {t[0]:.3f} .. {t[-1]:.3f}" if t else ""
    weights = f"; not finite before it: {', '.join(lost[:3])}" if lost else ""
    return f"step {step:,} ({at}{which}{levels}): {what}{weights}"


def poisoned(trainer: pl.Trainer, pl_module: pl.LightningModule, thorough: bool) -> list[str]:
    """Names of non-finite weights; if thorough, of averages, optimizer state and learned times too."""
    parts = {"weights": dict(pl_module.named_parameters()) | dict(pl_module.named_buffers())}
    if thorough:
        for ema in (c for c in trainer.callbacks if isinstance(c, EMA)):
            parts["EMA"] = ema.shadow
        for posthoc in (c for c in trainer.callbacks if isinstance(c, PostHoc)):
            parts |= {f"average {w:g}": track for w, track in posthoc.tracks.items()}
        for optimizer in trainer.optimizers:
            states = enumerate(optimizer.state.values())
            parts["optimizer"] = {f"{i}.{k}": v for i, s in states for k, v in s.items() if isinstance(v, Tensor)}
        if times := getattr(getattr(pl_module, "objective", None), "times", None):
            parts["times"] = {k: v for k, v in times.state_dict().items() if isinstance(v, Tensor)}
    found = []
    for name, tensors in parts.items():
        tensors = {k: v.detach() for k, v in tensors.items() if v.is_floating_point()}
        if tensors and not norm(list(tensors.values())).isfinite():  # one check for all, then find which
            found += [f"{name}.{k}" for k, v in tensors.items() if not v.isfinite().all()]
    return found


def newest(directory: Path) -> Path | None:
    """The newest readable checkpoint of a run."""
    for path in runs.checkpoints(directory):
        try:
            runs.read_checkpoint(path)
        except (ValueError, OSError):
            continue
        return path
    return None


def restore(trainer: pl.Trainer, pl_module: pl.LightningModule, path: Path) -> int:
    """Restore weights, averages, optimizer and learned times through the strategy; the checkpoint's step."""
    for ema in (c for c in trainer.callbacks if isinstance(c, EMA)):
        ema.on_exception(trainer, pl_module, NonFinite())  # swaps the raw weights back during validation
    kept = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in trainer.optimizers]
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    trainer.strategy.load_model_state_dict(checkpoint, strict=True)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, groups in zip(trainer.optimizers, kept, strict=True):
        for group, old in zip(optimizer.param_groups, groups, strict=True):
            group.update(old)  # keeps the current learning rate
    pl_module.on_load_checkpoint(checkpoint)
    for kept in (c for c in trainer.callbacks if isinstance(c, (EMA, PostHoc))):
        if kept.state_key in checkpoint["callbacks"]:
            kept.load_state_dict(checkpoint["callbacks"][kept.state_key])
            kept.on_fit_start(trainer, pl_module)
        if isinstance(kept, PostHoc):
            kept.rewind(trainer, checkpoint["global_step"])
    return checkpoint["global_step"]


def norm(tensors: list[Tensor]) -> Tensor:
    """The largest absolute value of all tensors, in one pass: finite if and only if all of them are.

    For sharded tensors, of which some processes may hold no part, the Euclidean norm.
    """
    order = 2.0 if any(isinstance(v, DTensor) for v in tensors) else float("inf")
    return whole(torch.nn.utils.get_total_norm(tensors, order))


def look(trainer: pl.Trainer) -> None:
    """Have the trainer's guard, if any, check everything that a checkpoint would hold before it is written."""
    for guard in (c for c in trainer.callbacks if isinstance(c, Guard)):
        guard.look(trainer, trainer.lightning_module, thorough=True)
