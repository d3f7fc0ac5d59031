"""Exponential moving average of the weights, which gives better samples than the raw weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA(pl.Callback):
    """Keep shadow = lerp(shadow, weights, 1 - d) after every optimizer step, d = min(decay, (1 + n) / (10 + n)).

    The increase of d with the number n of updates reduces the influence of the initial weights. The float32 shadow is
    used for validation and previews and saved beside the raw weights, which remain in `state_dict`.
    Source: Ho et al. 2020, arXiv:2006.11239, app. B; the increase: TensorFlow's ExponentialMovingAverage(num_updates).

    Args:
        decay: in [0, 1); 0 keeps the raw weights.
    Raises:
        ValueError: decay outside [0, 1).
    """

    state_key = "EMA"  # of its part of a checkpoint

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must lie in [0, 1), got {decay}")
        self.decay = float(decay)
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}
        self._live: list[Tensor] = []  # live weights in the shadow's order
        self._step = 0  # optimizer steps seen: with gradient accumulation not every batch is a step
        self._raw: dict[str, Tensor] = {}  # the raw weights while the shadow is swapped in

    def state_dict(self) -> dict:
        return {"decay": self.decay, "updates": self.updates, "shadow": {k: whole(v) for k, v in self.shadow.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.shadow = {k: v.clone() for k, v in state["shadow"].items()}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = trained(pl_module)
        if not self.shadow:
            self.shadow = {k: v.detach().float().clone() for k, v in weights.items()}
        # The shadow was restored before the module moved to its device.
        self.shadow = {k: placed_as(v, weights[k]) for k, v in self.shadow.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step  # restored only now in a resumed run
        self._live = list(trained(pl_module).values())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.shadow.values()), [v.float() for v in self._live], 1 - d)

    @contextmanager
    def applied(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Context in which the module has the averaged weights."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_out(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["state_dict"].update(self._raw)  # raw weights even when saved during validation

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if self._raw:
            return
        weights = trained(pl_module)
        if not self.shadow:
            return
        self._raw = {k: v.detach().clone() for k, v in weights.items()}
        for k, v in weights.items():
            v.copy_(self.shadow[k])

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        for k, v in trained(pl_module).items() if self._raw else ():
            v.copy_(self._raw[k])
        self._raw = {}


def trained(pl_module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    """The trained weights of a module by name, which averages are kept of."""
    return {k: v for k, v in pl_module.named_parameters() if v.requires_grad}


def whole(value: Tensor) -> Tensor:
    """The full tensor of a sharded one (a collective call); any other tensor unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_as(value: Tensor, weight: Tensor) -> Tensor:
    """A full tensor with the device and sharding of a weight."""
    if isinstance(weight, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value.to(weight.device)
