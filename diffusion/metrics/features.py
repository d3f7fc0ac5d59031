"""Small classifiers of small images, for the independent evaluation of samples, and their features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsNet(nn.Module):
    """Three convolutions and two linear layers for 8x8 grey images in [-1, 1]; features: the last hidden layer.

    Args:
        num_classes: number of classes.
        width: number of features D.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.num_classes, self.width = num_classes, width
        self.features = nn.Sequential(  # (B, 1, 8, 8) -> (B, D)
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.3), nn.Linear(64 * 16, width), nn.ReLU()),
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> logits (B, num_classes)."""
        return self.head(self.features(x))


class FeatureNet(nn.Module):
    """Stages of two convolutions, halving down to 4x4, and two linear layers, for C x H x W images in [-1, 1].

    Any size >= 4: a stage halves only what is larger than 4x4. The last hidden layer gives the features.

    Args:
        channels: C.
        num_classes: number of classes; 0 for features without a classifier.
        widths: channels of the stages.
        width: number of features D.
    """

    def __init__(
        self, channels: int = 1, num_classes: int = 10, widths: Sequence[int] = (16, 32, 64), width: int = 64
    ) -> None:
        super().__init__()
        self.channels, self.num_classes, self.widths, self.width = channels, num_classes, tuple(widths), width
        stages, before = [], channels
        for after in widths:
            stages.append(Stage(before, after))
            before = after
        self.features = nn.Sequential(  # (B, C, H, W) -> (B, D)
            *stages,
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(before * 16, width), nn.ReLU()),
        )
        self.head = nn.Linear(width, num_classes) if num_classes else NoLogits()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes)."""
        return self.head(self.features(x))


class NoLogits(nn.Module):
    """Features (B, D) -> (B, 0), the logits of no classes."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :0]


class Stage(nn.Sequential):
    """Convolution, halving, convolution: the second, wider convolution computes on a quarter of the pixels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            *(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
            Halve(),
            *(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
        )


class Halve(nn.Module):
    """Max-pooling by 2 of inputs larger than 4x4."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if min(x.shape[-2:]) > 4 else x


def train_classifier(x: Tensor, y: Tensor, epochs: int = 30, seed: int = 0) -> DigitsNet:
    """A DigitsNet trained on images x (N, 1, 8, 8) in [-1, 1] and labels y (N,), slightly rotated, scaled and shifted.

    A function of its arguments alone: torch's global random state is preserved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitsNet(int(y.max()) + 1).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        steps = epochs * math.ceil(len(x) / 128)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                F.cross_entropy(net(jitter(x[batch])), y[batch]).backward()
                optimizer.step()
                scheduler.step()
    return net.eval().requires_grad_(False)


def jitter(x: Tensor, degrees: float = 10.0, shift: float = 0.2, scale: float = 0.1) -> Tensor:
    """Each image randomly rotated, shifted (in units of half its size) and scaled a little; outside is -1."""
    most = torch.tensor([math.radians(degrees), scale, shift, shift])
    turn, size, dx, dy = (torch.rand(4, len(x)) * 2 - 1) * most[:, None]
    cos, sin = (1 + size) * turn.cos(), (1 + size) * turn.sin()
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)  # (B, 2, 3)
    theta = theta.to(x.device, non_blocking=True)
    return F.grid_sample(x + 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) - 1


def crop(x: Tensor, area: float = 0.5) -> Tensor:
    """A random part of each image (B, C, H, W), resized bilinearly to H x W.

    Source: Szegedy et al. 2015, arXiv:1409.4842, sec. 6.

    Args:
        area: smallest share of the image, in (0, 1]; the largest is 1. The aspect ratio changes by up to 4/3.
    """
    share, ratio, dx, dy = torch.rand(4, len(x))
    share, ratio = area + (1 - area) * share, torch.exp((2 * ratio - 1) * math.log(4 / 3))
    wide, high = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    none = torch.zeros(len(x))
    rows = [wide, none, (2 * dx - 1) * (1 - wide)], [none, high, (2 * dy - 1) * (1 - high)]
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1).to(x.device, non_blocking=True)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
