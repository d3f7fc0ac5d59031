"""Threads of a training on a CPU that wait for cores, which other programs use."""

import pytorch_lightning as pl
import torch

from diffusion.support.crowd import CoreWaits


class Crowd(pl.Callback):
    """Print one line, once, if training's threads wait for processor cores; see `support.crowd`. It changes nothing."""

    def __init__(self) -> None:
        self._waits = CoreWaits(1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        looks = pl_module.device.type == "cpu" and trainer.is_global_zero
        self._waits = CoreWaits(torch.get_num_threads() if looks else 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        if said := self._waits.look():
            print(f"notice: {said}", flush=True)
