"""Pictures during the training of an autoencoder: images beside their reconstructions."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from diffusion import pictures
from diffusion.pictures.bands import visible
from diffusion.training.callbacks.pictures import averaged


class Reconstructions(pl.Callback):
    """Draw test images, evenly spread, each left of its reconstruction: to samples/*.png and TensorBoard.

    Args:
        every_n_epochs: epochs between two grids, >= 1; 0 draws at the end only.
        n: images in the grid, >= 1.
        columns: pairs per row, >= 1.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, every_n_epochs: int = 1, n: int = 32, columns: int = 8) -> None:
        if every_n_epochs < 0 or min(n, columns) < 1:
            raise ValueError(
                "Reconstructions: every_n_epochs must be at least 0, n and columns at least 1; "
                f"got {every_n_epochs}, {n} and {columns}"
            )
        self.every_n_epochs, self.n, self.columns = every_n_epochs, n, columns

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.draw(trainer, pl_module, again=False)

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, again: bool = True) -> None:
        """Write the grid of this step; all processes call, the first one draws.

        Args:
            again: replace the file of this step, if there is one.
        """
        directory = trainer.log_dir  # which asks the first process: all have to, or none
        if trainer.fast_dev_run or not trainer.is_global_zero or directory is None:
            return
        path = Path(directory) / "samples" / f"step{trainer.global_step:08d}.png"
        if path.exists() and not again:
            return
        store, _ = trainer.datamodule.store("test")
        n = min(self.n, len(store))
        x0 = pl_module.scaling.encode(store.take(torch.arange(n) * len(store) // n)).to(pl_module.device)
        training = pl_module.training
        pl_module.eval()
        with averaged(trainer, pl_module):
            both = torch.stack([x0, pl_module.reconstructed(x0)], 1).flatten(0, 1)
        pl_module.train(training)
        sheet = pictures.grid(visible(both.cpu(), (), pl_module.scaling.dtype), 2 * self.columns)
        pictures.save_png(sheet, path)
        if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
            rgb = np.asarray(pictures.pillow(sheet).convert("RGB"))
            trainer.logger.experiment.add_image("reconstructions", rgb, trainer.global_step, dataformats="HWC")
