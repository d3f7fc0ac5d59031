"""Snapshots of power-function averages of the weights, from which an average of any width is made after training."""

import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.denoiser import averages
from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import link
from diffusion.training.callbacks.ema import placed_as, trained, whole

STORED = {"fp16": torch.float16, "fp32": torch.float32}


class PostHoc(pl.Callback):
    """Keep averages <- lerp(weights, averages, (1 - B / n)^(g + 1)) and write them `snapshots` times, evenly spread.

    B images of this step, n images seen after it: the average of all weights so far with the profile (g + 1) t^g. Its
    first factor is 0, so the initial weights have no influence. The snapshots lie in the run's averages/, and
    `diffusion average RUN --sigma_rel 0.03` combines them. A run that is extended has more of them.
    Source: Karras et al. 2024, arXiv:2312.02696, eq. 127; see `denoiser.averages`.

    Args:
        snapshots: of each average, over the whole training; 0 keeps none. 16 suffice for widths of .03 to .15.
        widths: sigma_rel of the averages that are kept.
        storage: of the snapshots. fp16 suffices for widths from .03 on; below, use fp32.
    Raises:
        ValueError: a negative number of snapshots, no width or equal ones, or a width out of range.
    """

    state_key = "PostHoc"  # of its part of a checkpoint

    def __init__(
        self,
        snapshots: int = 0,
        widths: Sequence[float] = (0.05, 0.1),
        storage: Literal["fp16", "fp32"] = "fp16",
    ) -> None:
        if snapshots < 0 or not widths or len(set(widths)) < len(widths) or storage not in STORED:
            raise ValueError(
                "PostHoc: wanted snapshots of at least 0, different widths, and storage fp16 or fp32; "
                f"got {snapshots}, {list(widths)} and {storage}"
            )
        self.snapshots, self.widths, self.storage = snapshots, tuple(map(float, widths)), storage
        self.exponents = {w: averages.exponent(w) for w in self.widths}
        self.tracks: dict[float, dict[str, Tensor]] = {}  # by width
        self.images = 0  # seen, all processes together
        self._before = 0  # at the last optimizer step
        self._step = 0
        self._live: list[Tensor] = []

    def state_dict(self) -> dict:
        if not self.snapshots:
            return {}
        tracks = {w: {k: whole(v) for k, v in track.items()} for w, track in self.tracks.items()}
        return {"images": self.images, "tracks": tracks}

    def load_state_dict(self, state: dict) -> None:
        if self.snapshots:
            self.images = self._before = state["images"]
            self.tracks = {w: {k: v.clone() for k, v in track.items()} for w, track in state["tracks"].items()}
            self.exponents = {w: averages.exponent(w) for w in self.tracks}  # those that the run has kept so far

    def bytes(self, pl_module: pl.LightningModule) -> int:
        """Size of all snapshots of a training, without the few kilobytes of their names."""
        numbers = sum(v.numel() for v in trained(pl_module).values())
        return self.snapshots * len(self.exponents) * numbers * STORED[self.storage].itemsize

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.snapshots:
            return
        weights = trained(pl_module)
        if not self.tracks:
            self.tracks = {w: {k: v.detach().float().clone() for k, v in weights.items()} for w in self.widths}
        self.tracks = {w: {k: placed_as(v, weights[k]) for k, v in track.items()} for w, track in self.tracks.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.snapshots:
            return
        self._step, self._before = trainer.global_step, self.images
        self._live = list(trained(pl_module).values())
        if math.isinf(trainer.estimated_stepping_batches):
            raise ValueError(
                "posthoc.snapshots are spread over the training, which has no end: set trainer.max_epochs or "
                "trainer.max_steps, or leave posthoc.snapshots at 0"
            )
        if folder := self._folder(trainer):
            self._continued(trainer, folder)
            self._checked(trainer, pl_module, folder)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, *args) -> None:
        if not self.snapshots:
            return
        self.images += len(batch[0]) * trainer.world_size
        if trainer.global_step == self._step:
            return
        before, self._step = self._step, trainer.global_step
        share = (self.images - self._before) / self.images
        self._before = self.images
        live = [v.float() for v in self._live]
        for w, track in self.tracks.items():
            keep = (1 - share) ** (self.exponents[w] + 1)
            torch._foreach_lerp_(list(track.values()), live, 1 - keep)
        total = trainer.estimated_stepping_batches
        if self._step * self.snapshots // total > before * self.snapshots // total:
            self.write(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Write the averages of this step; sharded ones are gathered by all processes."""
        folder = self._folder(trainer)
        for w, track in self.tracks.items():
            weights = {k: whole(v) for k, v in track.items()}
            if folder:
                weights = {k: stored(v, STORED[self.storage]) for k, v in weights.items()}
                averages.write(folder, self._step, self.images, w, weights)

    def rewind(self, trainer: pl.Trainer, step: int) -> None:
        """Remove snapshots of later steps, which a resumed run writes again and a run that rolled back has left."""
        if self.snapshots and (folder := self._folder(trainer)):
            self._removed(folder, step)

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        """The run's folder if this process writes to it; all have to call it, since `log_dir` asks the first one."""
        folder = trainer.log_dir
        return Path(folder) if folder and trainer.is_global_zero and not trainer.fast_dev_run else None

    def _removed(self, folder: Path, step: int) -> None:
        for snapshot in averages.snapshots(folder):
            if snapshot.step > step:
                snapshot.path.unlink(missing_ok=True)

    def _continued(self, trainer: pl.Trainer, own: Path) -> None:
        """Take over the earlier snapshots of a run that is continued in a new folder; remove later ones."""
        self._removed(own, trainer.global_step)
        before = runs.directory(Path(trainer.ckpt_path)) if trainer.ckpt_path else own
        if before.resolve() == own.resolve() or not self.images:
            return
        for snapshot in averages.snapshots(before):
            if snapshot.step <= trainer.global_step:
                (own / averages.FOLDER).mkdir(exist_ok=True)
                link(snapshot.path, own / averages.FOLDER / snapshot.path.name)

    def _checked(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
        """Warn if the disk has no room for the snapshots."""
        free, needed = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free, 0
        left = trainer.estimated_stepping_batches - trainer.global_step
        if left > 0:
            needed = self.bytes(pl_module) * left // trainer.estimated_stepping_batches
        if needed > free:
            warnings.warn(
                f"the snapshots of averages still need {needed / 1e6:,.0f} MB and {shown(folder)} has "
                f"{free / 1e6:,.0f} MB left; free disk space or give a smaller posthoc.snapshots",
                stacklevel=1,
            )


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on the host in the type of the snapshots, or float32 if it exceeds that type's range."""
    value = value.detach().cpu()
    small = value.to(dtype)
    return small if small.isfinite().all() else value.clone()
