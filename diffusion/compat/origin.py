"""The interface of the program that this project started from: `from diffusion.compat.origin import *`.

Networks and levels are the origin's, so that its own checkpoints are read; a checkpoint written by Lightning is one of
this project's, too: `diffusion sample FILE.ckpt`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffusion.compat.said import once
from diffusion.data import CIFAR10, MNIST, FashionMNIST
from diffusion.exchange.importing import origin
from diffusion.exchange.rows import read
from diffusion.nets.attention_unet import AttentionUNet
from diffusion.samplers import DDPM
from diffusion.support.scaling import Scaling
from diffusion.training.systems.diffusion import Diffusion

__all__ = ["DiffSet", "DiffusionModel"]
DATA = {"MNIST": MNIST, "Fashion": FashionMNIST, "CIFAR": CIFAR10}
BETTER = (
    "diffusion.compat.origin: `diffusion fit -c configs/mnist.yaml` trains this network with averaged weights, "
    "previews and exact resuming"
)


class DiffSet(Dataset):
    """The images of a data set as tensors (C, 32, 32) in [-1, 1]; 28x28 images are padded.

    Args:
        train: the training images, else the test images.
        dataset: "MNIST", "Fashion" or "CIFAR".
        root: folder of the data sets; by default as for `diffusion fit`.
    Attributes:
        size: 32.
        depth: channels, 1 or 3.
    Raises:
        ValueError: there is no such data set.
    """

    def __init__(self, train: bool, dataset: str = "MNIST", root: str | None = None) -> None:
        if dataset not in DATA:
            raise ValueError(f"DiffSet: wanted one of {', '.join(DATA)}, got {dataset!r}")
        once(BETTER)
        data = DATA[dataset](root=root)
        data.prepare_data()
        self.images = data.arrays("train" if train else "test")[0]  # (N, C, 32, 32) uint8
        self.dataset_len, (self.depth, self.size, _) = len(self.images), data.shape

    def __len__(self) -> int:
        return self.dataset_len

    def __getitem__(self, item: int) -> Tensor:
        return Scaling().encode(self.images[item][None])[0]


class DiffusionModel(Diffusion):
    """The self-attention U-Net with the origin's linear schedule, as a LightningModule whose batches are images alone.

    Args:
        in_size: pixels of an image, height times width.
        t_range: diffusion steps; the levels are t = 1 .. t_range - 1, level 0 is the image.
        img_depth: channels.
    Raises:
        ValueError: images are not square, or t_range is below 4.
    """

    def __init__(self, in_size: int, t_range: int, img_depth: int) -> None:
        size = math.isqrt(in_size)
        if size * size != in_size or t_range < 4:
            raise ValueError(
                f"DiffusionModel: expected square images and t_range >= 4, got {in_size} pixels and {t_range}"
            )
        super().__init__(
            AttentionUNet(img_depth, clock_shift=1.0), origin.schedule_of(t_range), sampler=DDPM(t_range - 1, "large"),
            shape=(img_depth, size, size),
        )  # fmt: skip
        self.in_size, self.t_range = in_size, t_range
        once(BETTER)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted noise for images x (B, C, H, W) at levels t, (B, 1) or one number."""
        clock = torch.as_tensor(t, device=x.device, dtype=torch.float32).reshape(-1) - 1
        return self.denoiser.net(x, clock.expand(len(x)))

    @torch.no_grad()
    def denoise_sample(self, x: Tensor, t: Tensor | int) -> Tensor:
        """x at level t - 1 from x at level t, for t = t_range - 1 .. 1: one step of DDPM with the variance "large"."""
        schedule, index = self.denoiser.schedule, int(t)
        if not 1 <= index < self.t_range:
            raise ValueError(f"denoise_sample: t must lie in 1 .. {self.t_range - 1}, got {index}")
        at = torch.tensor([index, index - 1], dtype=torch.float64) / schedule.T
        now, after = schedule.level(at[0]), schedule.level(at[1]) if index > 1 else schedule.clean()
        denoise = self.pipeline.clamp(self.pipeline.steered(None))
        return self.pipeline.sampler.step(denoise, x, now, after, [], torch.randn_like)[0]

    def training_step(self, batch: Any, batch_idx: int) -> dict:
        return super().training_step(with_labels(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(with_labels(batch), batch_idx)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Accept the origin's own checkpoints: its parameters get our names."""
        super().on_load_checkpoint(checkpoint)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        if origin.fits(checkpoint):
            net: nn.Module = self.denoiser.net
            own = read(net, origin.table(), state, "DiffusionModel")
            checkpoint["state_dict"] = {f"denoiser.net.{name}": value for name, value in own.items()}


def with_labels(batch: Any) -> tuple[Tensor, None]:
    """A batch of images, with or without labels, as images and no labels."""
    return (batch if isinstance(batch, Tensor) else batch[0]), None
