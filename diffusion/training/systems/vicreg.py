"""The LightningModule that trains features of images without labels, the extractor of the metrics for such data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.metrics.features import FeatureNet, crop
from diffusion.noise.draws import seed_streams
from diffusion.support.specs import build, spec
from diffusion.training.systems.base import System, one_cycle


class VICReg(System):
    """Self-supervised features: two crops of an image have similar embeddings, and the embeddings are spread out.

        loss = invariance |z - z'|^2 / E + variance (hinge(z) + hinge(z')) / 2 + covariance (off(z) + off(z')) / E

    z, z' (B, E) are the expanded features of two crops of each image, `hinge` keeps every deviation above 1 and `off`
    is the sum of the squared covariances of different dimensions. There are no negative pairs, so small batches
    suffice. Images are only cropped: features that ignore blur, noise or colour cannot measure them.

    AdamW with a one-cycle learning rate. The statistics are those of one process's batch.
    Source: Bardes, Ponce & LeCun 2022, arXiv:2105.04906, eq. 1 to 6, with the weights and the factors of its published
    code: eq. 5 is not divided by E, and eq. 6 does not halve the hinges.

    Args:
        net: images (B, C, H, W) -> features (B, D), with `features` and the attribute `width`, D; without classes.
        expanded: E, >= 2.
        area: smallest crop, as a share of an image, in (0, 1].
        invariance: weight of the first term, >= 0.
        variance: weight of the second term, >= 0.
        covariance: weight of the third term, >= 0.
        lr: peak learning rate, > 0.
        weight_decay: of AdamW, >= 0.
        seed: of crops and dropout.
        shape: (C, H, W) of an image.
    Raises:
        ValueError: a number out of range, or a network with classes.
    """

    def __init__(
        self,
        net: nn.Module = FeatureNet(num_classes=0),
        expanded: int = 256,
        area: float = 0.5,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
    ) -> None:
        super().__init__()
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        parts = {k: build(v) for k, v in parts.items()}  # specs from a checkpoint, else objects
        if lr <= 0 or min(weight_decay, invariance, variance, covariance) < 0 or expanded < 2 or not 0 < area <= 1:
            raise ValueError(
                "VICReg: lr must be positive, weights and weight_decay at least 0, expanded at least 2 and area in "
                f"(0, 1]; got {lr}, {(invariance, variance, covariance)}, {weight_decay}, {expanded} and {area}"
            )
        self.net = parts["net"]
        if getattr(self.net, "num_classes", 0):
            raise ValueError(f"VICReg: sees no labels; give the network num_classes 0, not {self.net.num_classes}")
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.area, self.lr, self.weight_decay, self.seed, self.shape = area, lr, weight_decay, seed, tuple(shape)
        self.weights = invariance, variance, covariance
        self.expander = nn.Sequential(
            *(nn.Linear(self.net.width, expanded), nn.BatchNorm1d(expanded), nn.ReLU()),
            *(nn.Linear(expanded, expanded), nn.BatchNorm1d(expanded), nn.ReLU()),
            nn.Linear(expanded, expanded),
        )

    def embeddings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, E) of two crops of each image (B, C, H, W)."""
        if len(x) < 2:
            raise ValueError(f"VICReg: needs at least 2 images per batch, got {len(x)}; raise data.batch_size")
        return self.expander(self.net.features(torch.cat([crop(x, self.area), crop(x, self.area)]))).float().chunk(2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        seed_streams(x.device, self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank, 2)
        loss = sum(w * term for w, term in zip(self.weights, terms(*self.embeddings(x)), strict=True))
        if self.due(batch_idx):
            self.log_loss(loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss, and its part that reveals a collapse: the embeddings' missing deviation, 0 (spread) to 1."""
        x = batch[0]
        if len(x) < 2:
            return
        with torch.random.fork_rng(devices=[]):  # the same crops in every validation
            seed_streams(torch.device("cpu"), self.seed, batch_idx, self.global_rank, 3)
            found = terms(*self.embeddings(x))
        options = {"sync_dist": True, "batch_size": len(x) * self.trainer.world_size}
        loss = sum(w * term for w, term in zip(self.weights, found, strict=True))
        self.log("val/loss", loss, prog_bar=True, **options)
        self.log("val/collapse", found[1], **options)

    def configure_optimizers(self) -> dict:
        return one_cycle(self, self.lr, self.weight_decay)


def terms(a: Tensor, b: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """The invariance, variance and covariance terms of two batches of embeddings (B, E), without weights."""
    hinges, offs = [], []
    for z in (a, b):
        z = z - z.mean(0)
        cov = z.T @ z / (len(z) - 1)
        hinges.append(F.relu(1 - (cov.diagonal() + eps).sqrt()).mean())
        offs.append((cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1])
    return F.mse_loss(a, b), sum(hinges) / 2, sum(offs)
