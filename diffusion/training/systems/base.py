"""What the systems share: optimizers and learning rates."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.training.systems.optimizer import AdamW


class System(pl.LightningModule):
    """A LightningModule whose optimizer measures, guards and clips its gradients, see `AdamW`."""

    def due(self, batch: int) -> bool:
        """Whether a figure of this training step is written down; at an epoch's first batch too, for the progress bar.

        `self.log` costs a millisecond, and what it is told between two of the logger's steps goes nowhere.
        """
        return batch == 0 or self.trainer._logger_connector.should_update_logs

    def log_loss(self, loss: Tensor) -> None:
        """Log train/loss, on the CPU: Lightning reads what a progress bar shows after every step, due or not."""
        self.log("train/loss", loss.detach().cpu(), prog_bar=True)

    def adamw(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), **options: Any) -> AdamW:
        """The optimizer of all weights, which clips as the trainer is configured."""
        clip = {"clip": self.trainer.gradient_clip_val, "algorithm": self.trainer.gradient_clip_algorithm}
        return AdamW(self.parameters(), lr, tuple(betas), **clip, **options)

    def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
        """Nothing: the optimizer clips. Lightning's own way refuses a fused optimizer in bf16, too."""


def scheduled(optimizer: AdamW, trainer: pl.Trainer, warmup: int, decay: str) -> dict:
    """The optimizer with a learning rate that changes at each step by `lr_factor`; the trainer knows the end."""

    def factor(step: int) -> float:
        # Asking for the number of steps now would set the loader up before its place in the data is restored.
        return lr_factor(step, trainer.estimated_stepping_batches if step else math.inf, warmup, decay)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lr_factor(step: int, total: float, warmup: int = 0, decay: str = "constant") -> float:
    """The learning rate at a step in units of the highest: a linear rise over `warmup` steps, then `decay` to 0.

    Args:
        step: from 0.
        total: steps of the whole training.
        warmup: steps, >= 0.
        decay: "constant", "linear" or "cosine".
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    if decay == "constant":
        return rise
    done = min(1.0, max(0, step - warmup) / max(1, total - warmup))
    return rise * (1 - done if decay == "linear" else (1 + math.cos(math.pi * done)) / 2)


def one_cycle(module: System, lr: float, weight_decay: float) -> dict:
    """AdamW whose learning rate rises over a tenth of the training and falls to 0.

    Source: Smith & Topin 2017, arXiv:1708.07120.
    """
    optimizer = module.adamw(lr, weight_decay=weight_decay)
    steps = int(module.trainer.estimated_stepping_batches) + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
