"""What the pictures of the lessons share: colours, style, data."""

import torch

from diffusion.bench.analytic import Mixture
from diffusion.data import Digits
from diffusion.noise import Level

WIDTH, DPI = 6.4, 150  # inches, so that the letters can be read on a phone
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777"
STYLE = {
    "font.size": 11.5, "axes.titlesize": 11.5, "axes.labelsize": 11.5, "legend.fontsize": 10.5, "legend.frameon": False,
    "xtick.labelsize": 10, "ytick.labelsize": 10, "lines.linewidth": 2.2, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": False, "svg.hashsalt": "learn",
}  # fmt: skip
TWO = Mixture([-1.0, 1.0], 0.2, [1, 2])  # the data of lessons 5 and 6


def at(schedule, t: float) -> Level:
    """The level of a time."""
    return schedule.level(torch.tensor(t, dtype=torch.float64))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in [-1, 1] and their labels."""
    images, labels = Digits().load(split)
    return images / 127.5 - 1, labels


def show(axes, x: torch.Tensor, limit: float = 1.0) -> None:
    """A grey image without ticks."""
    axes.imshow(x.reshape(x.shape[-2:]), cmap="gray", vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def beside(axes, words: str, size: float = 11) -> None:
    """The name of a row of images."""
    axes.set_ylabel(words, rotation=0, ha="right", va="center", labelpad=8, fontsize=size)
