"""The interface of a short course on diffusion models (sprites): `from diffusion.compat.course import *`.

Its samplers use the network that was made last, as in its notebooks, or the one given as `model`.
"""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from diffusion.compat.said import once
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import Eps
from diffusion.exchange.importing.found import Imported
from diffusion.exchange.importing.writing import write
from diffusion.guidance import Clamp
from diffusion.nets.context_unet import ContextUNet
from diffusion.noise import Linear
from diffusion.samplers import DDIM, DDPM, Sampler

__all__ = [
    "ContextUnet", "CustomDataset", "sample_ddim", "sample_ddim_context", "sample_ddpm", "sample_ddpm_context", "save",
    "transform",
]  # fmt: skip
TIMESTEPS, START, END = 500, 1e-4, 0.02
BETTER = (
    "diffusion.compat.course: `diffusion fit -c configs/sprites_course.yaml` trains this network with a null context, "
    "averaged weights and previews; save(model, RUN) makes a run of this one for `diffusion sample RUN`"
)
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])  # to [-1, 1]
_made: list[weakref.ref] = []


def schedule() -> Linear:
    """The course's levels t = 1 .. 500, beta_t = 1e-4 + t / 500 (0.02 - 1e-4); its factor of t = 0 is left out."""
    return Linear(TIMESTEPS, START + (END - START) / TIMESTEPS, END, rescale=False)


class ContextUnet(nn.Module):
    """Our ContextUNet under the course's interface; a context of zeros is its "no context".

    Args:
        in_channels: channels of the images.
        n_feat: channels at full size, a multiple of 4.
        n_cfeat: width of the context vectors.
        height: side of an image, a multiple of 4.
    """

    def __init__(self, in_channels: int = 3, n_feat: int = 256, n_cfeat: int = 10, height: int = 28) -> None:
        super().__init__()
        if height % 4:
            raise ValueError(f"ContextUnet: height must be a multiple of 4, got {height}")
        self.in_channels, self.n_feat, self.n_cfeat, self.h = in_channels, n_feat, n_cfeat, height
        self.net = ContextUNet(**build_options(self))
        _made[:] = [weakref.ref(self)]
        once(BETTER)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """The predicted noise for images x (B, C, H, W), times t = index / 500 in (0, 1] and contexts c (B, D)."""
        clock = torch.as_tensor(t, device=x.device, dtype=torch.float32).reshape(-1) * TIMESTEPS - 1
        keep = None if c is None else (c != 0).any(dim=1)
        return self.net(x, clock.expand(len(x)), None if c is None else c.to(x), keep)


class CustomDataset(Dataset):
    """Images and labels of two .npy files, (N, H, W, C) uint8 and (N, D).

    Args:
        sfilename: of the images.
        lfilename: of the labels.
        transform: of an image; the course's maps it to [-1, 1].
        null_context: give 0 in place of each label.
    """

    def __init__(
        self, sfilename: str, lfilename: str, transform: Callable[[np.ndarray], Any], null_context: bool = False
    ) -> None:
        self.sprites = np.load(sfilename, allow_pickle=False)
        self.slabels = np.load(lfilename, allow_pickle=False)
        if len(self.sprites) != len(self.slabels):
            raise ValueError(f"CustomDataset: {len(self.sprites)} images, but {len(self.slabels)} labels")
        self.transform, self.null_context = transform, null_context
        self.sprites_shape, self.slabel_shape = self.sprites.shape, self.slabels.shape

    def __len__(self) -> int:
        return len(self.sprites)

    def __getitem__(self, idx: int) -> tuple[Any, Tensor]:
        image = self.transform(self.sprites[idx])
        return image, torch.tensor(0 if self.null_context else self.slabels[idx]).long()

    def getshapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the images and of the labels."""
        return self.sprites_shape, self.slabel_shape


def latest(model: ContextUnet | None) -> ContextUnet:
    """The given network, else the one that was made last.

    Raises:
        ValueError: there is none.
    """
    found = model or (_made[0]() if _made else None)
    if found is None:
        raise ValueError("there is no ContextUnet yet: make one first, or pass model=")
    return found


@torch.no_grad()
def walked(
    n: int, sampler: Sampler, context: Tensor | None, model: ContextUnet | None, every: int
) -> tuple[Tensor, np.ndarray]:
    """n images, and the states (frames, n, C, H, W) after each `every`-th step and after the last eight.

    As in the course, the predicted x_0 has no limit, and the noise is torch's.
    """
    model = latest(model)
    device = next(model.parameters()).device
    c = torch.zeros(n, model.n_cfeat) if context is None else context.float().expand(n, -1)
    cond = Condition(c.to(device), (c != 0).any(dim=1).to(device))
    denoiser, training = Denoiser(model.net, schedule(), Eps()), model.training
    model.eval()
    x, kept = torch.randn(n, model.in_channels, model.h, model.h, device=device), []
    for left, frame in enumerate(sampler.iterate(denoiser.bind(cond), x, denoiser.schedule), 1 - sampler.steps):
        if left % every == 0 or left > -8:
            kept.append(frame.x.cpu().numpy())
    model.train(training)
    return frame.x, np.stack(kept)


def sample_ddpm(n_sample: int, save_rate: int = 20, model: ContextUnet | None = None) -> tuple[Tensor, np.ndarray]:
    """n images (n, C, H, W) by DDPM with 500 steps and no context, and the states on the way."""
    return walked(n_sample, DDPM(TIMESTEPS, "large"), None, model, save_rate)


def sample_ddpm_context(
    n_sample: int, context: Tensor, save_rate: int = 20, model: ContextUnet | None = None
) -> tuple[Tensor, np.ndarray]:
    """`sample_ddpm` for contexts (n, D), or one for all images (D,)."""
    return walked(n_sample, DDPM(TIMESTEPS, "large"), context, model, save_rate)


def sample_ddim(n_sample: int, n: int = 20, model: ContextUnet | None = None) -> tuple[Tensor, np.ndarray]:
    """n_sample images (n_sample, C, H, W) by DDIM with n steps and no context, and all states."""
    return walked(n_sample, DDIM(n), None, model, 1)


def sample_ddim_context(
    n_sample: int, context: Tensor, n: int = 20, model: ContextUnet | None = None
) -> tuple[Tensor, np.ndarray]:
    """`sample_ddim` for contexts (n_sample, D), or one for all images (D,)."""
    return walked(n_sample, DDIM(n), context, model, 1)


def save(model: ContextUnet, run: str | Path, class_names: Sequence[str] = ()) -> Path:
    """Make a run of a network, for `diffusion sample`, `film` and `fit --resume`, and return its folder.

    Args:
        run: the run directory to write.
        class_names: names of the context's entries.
    Raises:
        ValueError: the folder is not empty.
    """
    net, shape = ContextUNet(**build_options(model)), (model.in_channels, model.h, model.h)
    found = Imported("course", net, model.net.state_dict(), schedule(), Eps(), DDIM(25), Clamp(), shape)
    return write(found, Path(run), class_names=list(class_names))


def build_options(model: ContextUnet) -> dict[str, int]:
    """The arguments of our network."""
    return {"channels": model.in_channels, "width": model.n_feat, "pool": model.h // 4, "context_dim": model.n_cfeat}
