"""The LightningModule that trains a classifier of noisy images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.guidance import NoisyImageClassifier
from diffusion.metrics.extractor import to_labels
from diffusion.metrics.features import jitter
from diffusion.nets.half_unet import HalfUNet
from diffusion.noise import Linear, Schedule, Stratified, Times
from diffusion.noise.draws import FixedDraws, StepDraws, seed_streams
from diffusion.support.specs import build, spec
from diffusion.training.systems.base import System, one_cycle

EDGES = torch.tensor([-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0], dtype=torch.float64)  # of log-SNR
NAMES = ["below_-8", *(f"{int(a)}_to_{int(a) + 2}" for a in EDGES[:-1]), "above_8"]
ASKED = 8  # levels at which each validation image is classified


class NoisyClassifier(NoisyImageClassifier, System):
    """Trains p(y | x_t) at every level of a schedule; the forward pass is NoisyImageClassifier's.

    AdamW with a one-cycle learning rate; images are slightly rotated, scaled and shifted.

    Args:
        net: (x (B, C, H, W), clock (B,)) -> logits (B, K).
        schedule: that of the diffusion models to guide.
        times: distribution of the training times.
        lr: peak learning rate, > 0.
        weight_decay: of AdamW, >= 0.
        degrees: largest rotation of an image.
        shift: largest shift of an image, in units of half its size.
        scale: largest scaling of an image, as a fraction.
        seed: of jitter, dropout and noise.
        shape: (C, H, W) of an image; linked from the data.
        class_names: names of the classes; linked from the data.
    Raises:
        ValueError: a learning rate or decay out of range.
    """

    def __init__(
        self,
        net: nn.Module = HalfUNet(),
        schedule: Schedule = Linear(),
        times: Times = Stratified(),
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        degrees: float = 5.0,
        shift: float = 0.1,
        scale: float = 0.05,
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
        class_names: Sequence[str] = (),
    ) -> None:
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        parts = {k: build(v) for k, v in parts.items()}  # specs from a checkpoint, else objects
        super().__init__(parts["net"], parts["schedule"], shape, class_names)
        if lr <= 0 or weight_decay < 0:
            raise ValueError(
                f"NoisyClassifier: lr must be positive, weight_decay at least 0; got {lr} and {weight_decay}"
            )
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.times = parts["times"]
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.degrees, self.shift, self.scale = degrees, shift, scale
        self._seen = 0  # validation images of this pass so far
        self._right = torch.zeros(2, len(NAMES), dtype=torch.float64)  # correct and total per bin, of this pass

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, y, *_ = batch
        step = self.trainer.fit_loop.total_batch_idx
        seed_streams(x0.device, self.seed, step, self.global_rank, 2)
        draws = StepDraws(self.seed, step, self.global_rank, x0.device)
        x0 = jitter(x0, self.degrees, self.shift, self.scale)
        level = self.schedule.level(self.times(draws.uniform(len(x0)), self.schedule))
        t = level.like(x0)
        loss = F.cross_entropy(self(t.alpha * x0 + t.sigma * draws.normal(x0), level), to_labels(y))
        if self.due(batch_idx):
            self.log_loss(loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen = 0
        self._right.zero_()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of each image at levels spread over the schedule, with noise that is fixed across runs."""
        x0, y, *_ = batch[0], to_labels(batch[1])
        indices = self.global_rank + self.trainer.world_size * (self._seen + torch.arange(len(x0)))
        self._seen += len(x0)
        draws, losses, rights = FixedDraws(self.seed, indices), [], []
        for k in range(ASKED):
            level = self.schedule.level(self.schedule.quantile((k + draws.uniform(len(x0))) / ASKED))
            t = level.like(x0)
            logits = self(t.alpha * x0 + t.sigma * draws.normal(x0), level)
            losses.append(F.cross_entropy(logits, y))
            rights.append(logits.argmax(1) == y)
            bins = torch.bucketize(level.log_snr, EDGES, right=True)
            right = rights[-1].double().cpu()
            self._right += torch.stack([torch.bincount(bins, w, minlength=len(NAMES)) for w in (right, right * 0 + 1)])
        # Multi-process averaging as in Classifier.
        options = {"sync_dist": True, "batch_size": len(x0) * self.trainer.world_size, "prog_bar": True}
        self.log("val/loss", torch.stack(losses).mean(), **options)
        self.log("val/accuracy", torch.stack(rights).float().mean(), **options)

    def on_validation_epoch_end(self) -> None:
        right, count = self.trainer.strategy.reduce(self._right.to(self.device).float(), reduce_op="sum").cpu()
        for name, hits, n in zip(NAMES, right, count, strict=True):
            if n:
                self.log(f"accuracy_by_log_snr/{name}", hits / n, rank_zero_only=True)

    def configure_optimizers(self) -> dict:
        return one_cycle(self, self.lr, self.weight_decay)
