"""Shared base of the systems: optimizers and learning-rate schedules."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.training.systems.checked import AdamW, Checked

COOLDOWN = 0.2  # share of the steps in which "wsd" decays
Decay = Literal["constant", "linear", "cosine", "wsd"]


class System(pl.LightningModule):
    """A LightningModule whose optimizer measures, checks and clips its gradients (see `AdamW`).

    Attributes:
        lr_scales: factors of the learning rate, each with its parameters; see `initial.scaled`.
    """

    lr_scales: Sequence[tuple[float, list[torch.nn.Parameter]]] = ()

    def on_fit_start(self) -> None:
        """Reject data that are to give latents; a system with a codec overrides this."""
        if getattr(getattr(self.trainer, "datamodule", None), "latents", "fly") == "cache":
            raise ValueError(f"data.latents cache: {type(self).__name__} is trained on images; leave data.latents out")

    def due(self, batch: int) -> bool:
        """Whether this training step is logged; an epoch's first batch always is, for the progress bar.

        `self.log` costs a millisecond, and values passed to it between two logging steps are discarded.
        """
        return batch == 0 or self.trainer._logger_connector.should_update_logs

    @property
    def progress(self) -> float:
        """The fraction of the optimizer steps that are done, in [0, 1]: a function of (step, last step) alone.

        Raises:
            ValueError: training has no end.
        """
        step = self.trainer.global_step  # restored on resume
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(f"{type(self).__name__}: progress needs an end: set trainer.max_epochs or max_steps")
        # Requesting the number of steps at step 0 would set up the loader before its position is restored.
        return min(1.0, step / self.trainer.estimated_stepping_batches) if step else 0.0

    def log_loss(self, loss: Tensor) -> None:
        """Log train/loss from the CPU: Lightning reads progress-bar values after every step, whether due or not."""
        self.log("train/loss", loss.detach().cpu(), prog_bar=True)

    @property
    def clipping(self) -> dict[str, Any]:
        """The trainer's gradient clipping, as options of the optimizer."""
        return {"clip": self.trainer.gradient_clip_val, "algorithm": self.trainer.gradient_clip_algorithm}

    def adamw(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), **options: Any) -> AdamW:
        """The optimizer of all weights, with the trainer's gradient clipping."""
        return AdamW(self.groups(lr), lr, tuple(betas), **self.clipping, **options)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """The weights that train, as parameter groups: one for each factor of `lr_scales`, 1 first."""

        def first(group: tuple[float, list[Tensor]]) -> tuple[bool, float]:
            return group[0] != 1, group[0]

        scaled = {id(p): factor for factor, parameters in self.lr_scales for p in parameters}
        found: dict[float, list[Tensor]] = {}
        for p in self.parameters():
            if p.requires_grad:
                found.setdefault(scaled.get(id(p), 1.0), []).append(p)
        return [{"params": parameters, "lr": factor * lr} for factor, parameters in sorted(found.items(), key=first)]

    def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
        """No-op: the optimizer clips. Lightning's own clipping also rejects a fused optimizer in bf16."""


def scheduled(optimizer: Checked, trainer: pl.Trainer, warmup: int, decay: str) -> dict:
    """The optimizer with a per-step learning rate from `lr_factor`; the trainer supplies the total steps."""

    def factor(step: int) -> float:
        # Requesting the number of steps at step 0 would set up the loader before its position is restored.
        return lr_factor(step, trainer.estimated_stepping_batches if step else math.inf, warmup, decay)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lr_factor(step: int, total: float, warmup: int = 0, decay: str = "constant") -> float:
    """The learning rate at a step as a fraction of the peak: linear warm-up over `warmup` steps, then `decay`.

    Args:
        step: counted from 0.
        total: number of training steps.
        warmup: number of warm-up steps, >= 0.
        decay: "constant", or to 0 at the end: "linear", "cosine", or "wsd", constant until the last fifth.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    if decay == "constant":
        return rise
    done = min(1.0, max(0, step - warmup) / max(1, total - warmup))
    if decay == "wsd":  # Hagele et al. 2024, arXiv:2405.18392: a fifth is as good as a cosine
        return rise * min(1.0, (1 - done) / COOLDOWN)
    return rise * (1 - done if decay == "linear" else (1 + math.cos(math.pi * done)) / 2)


def one_cycle(module: System, lr: float, weight_decay: float) -> dict:
    """AdamW with a learning rate that rises over the first tenth of training and then falls to 0.

    Source: Smith & Topin 2017, arXiv:1708.07120.
    """
    optimizer = module.adamw(lr, weight_decay=weight_decay)
    steps = int(module.trainer.estimated_stepping_batches) + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
