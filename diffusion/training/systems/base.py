"""What the systems share: an optimizer for classifiers, and a model rebuilt from its file."""

from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

System = TypeVar("System", bound=pl.LightningModule)


def due(trainer: pl.Trainer, batch: int) -> bool:
    """Is a figure of this training step written down? At an epoch's first batch too, for the progress bar.

    `self.log` costs a millisecond, and what it is told between two of the logger's steps goes nowhere.
    """
    return batch == 0 or trainer._logger_connector.should_update_logs


def one_cycle(module: pl.LightningModule, lr: float, weight_decay: float) -> dict:
    """AdamW whose learning rate rises over a tenth of the training and falls to 0.

    Source: Smith & Topin 2017, arXiv:1708.07120.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=weight_decay)
    steps = int(module.trainer.estimated_stepping_batches) + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def rebuilt(kind: type[System], path: Path | str, parts: dict, state: dict[str, Tensor]) -> System:
    """A system made of the specs in a checkpoint, with its weights, in evaluation mode.

    Raises:
        ValueError: the weights do not fit.
    """
    model = kind(**parts)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the model that the file describes: {error}") from error
    return model.eval()
