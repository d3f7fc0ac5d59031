"""The LightningModule that trains a data set's classifier, the feature extractor of the metrics."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.metrics.extractor import to_labels
from diffusion.metrics.features import FeatureNet, jitter
from diffusion.noise.draws import seed_streams
from diffusion.support.specs import build, spec
from diffusion.training.systems.base import System, one_cycle


class Classifier(System):
    """Image classifier trained on slightly rotated, scaled and shifted images; its last hidden layer is the features.

    AdamW with a one-cycle learning rate. Images have values in [-1, 1]; labels are numbers or one-hot contexts.

    Args:
        net: images (B, C, H, W) -> logits, with `features` and `head`.
        lr: peak learning rate, > 0.
        weight_decay: of AdamW, >= 0.
        degrees: largest rotation of an image.
        shift: largest shift of an image, in units of half its size.
        scale: largest scaling of an image, as a fraction.
        seed: of the jitter and dropout.
        shape: (C, H, W) of an image.
        class_names: names of the classes.
    Raises:
        ValueError: a learning rate or decay out of range.
    """

    def __init__(
        self,
        net: nn.Module = FeatureNet(),
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        degrees: float = 10.0,
        shift: float = 0.2,
        scale: float = 0.1,
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        parts = {k: build(v) for k, v in parts.items()}  # specs from a checkpoint, else objects
        if lr <= 0 or weight_decay < 0:
            raise ValueError(f"Classifier: lr must be positive, weight_decay at least 0; got {lr} and {weight_decay}")
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.net = parts["net"]
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.degrees, self.shift, self.scale = degrees, shift, scale
        self.shape, self.class_names = tuple(shape), tuple(class_names)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y, *_ = batch
        seed_streams(x.device, self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank, 2)
        loss = F.cross_entropy(self.net(jitter(x, self.degrees, self.shift, self.scale)), to_labels(y))
        if self.due(batch_idx):
            self.log_loss(loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y, *_ = batch
        logits, y = self.net(x), to_labels(y)
        # Lightning divides the summed counts by the number of processes in integers; the product keeps this exact.
        options = {"sync_dist": True, "batch_size": len(x) * self.trainer.world_size, "prog_bar": True}
        self.log("val/loss", F.cross_entropy(logits, y), **options)
        self.log("val/accuracy", (logits.argmax(1) == y).float().mean(), **options)

    def configure_optimizers(self) -> dict:
        return one_cycle(self, self.lr, self.weight_decay)
