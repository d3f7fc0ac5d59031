"""The LightningModule that trains an autoencoder, whose latents diffusion can work on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.metrics.extractor import load_extractor
from diffusion.nets.autoencoder import ConvAutoencoder, Patches
from diffusion.nets.bottleneck import Codebook
from diffusion.noise.draws import StepDraws, seed_streams
from diffusion.support.scaling import Scaling
from diffusion.support.specs import build, spec
from diffusion.training.systems.base import Decay, System, scheduled

RANGE = 2.0  # of x_0 in [-1, 1], the peak of PSNR


class Autoencoder(System):
    """An autoencoder with a narrow latent, for `codecs.Frozen`.

        loss = error + bottleneck / D + perceptual distance + adversarial lambda G + hinge of the discriminator
        lambda = |grad error| / (|grad G| + 1e-4) at the decoder's last layer,    G = -mean discriminator(decoded)

    D is the number of values of an image, and `error` the mean over them. The discriminator and the autoencoder take
    their steps together, with one optimizer, and neither receives the gradient of the other's term. Before its start
    the discriminator has gradients of zero, as in the published code.
    Source: Esser et al. 2021, arXiv:2012.09841, eq. 7; Rombach et al. 2022, arXiv:2112.10752, app. G. Equivariance:
    Kouzelis et al. 2025, arXiv:2502.09509.

    Args:
        net: an autoencoder with a bottleneck, see `ConvAutoencoder`.
        error: of a reconstruction: l1 or mse.
        classifier: run or checkpoint of the data's `Classifier`, for the perceptual distance; "" for none.
        perceptual: weight of the distance in the classifier's features, >= 0.
        discriminator: width of the discriminator of patches (`Patches`), a multiple of 4; 0 trains without one.
        adversarial: weight of the discriminator's judgement, >= 0.
        starts: optimizer step from which the discriminator trains and judges, >= 0.
        equivariance: share of the steps, in [0, 1], that decode a rotated and scaled latent to the image that is
            rotated and scaled alike.
        lr: learning rate of AdamW, > 0.
        betas: AdamW's averaging constants.
        weight_decay: AdamW's decoupled weight decay, >= 0.
        warmup: optimizer steps over which the learning rate rises from 0.
        decay: learning rate after the warm-up, see `Diffusion`.
        seed: of the latents' noise.
        shape: (C, H, W) of an image; linked from the data.
        scaling: from the data's raw values to x_0; linked from the data.
    Raises:
        ValueError: a number out of range, or images that the network does not take.
    """

    def __init__(
        self,
        net: nn.Module = ConvAutoencoder(),
        error: Literal["l1", "mse"] = "l1",
        classifier: str = "",
        perceptual: float = 0.1,
        discriminator: int = 0,
        adversarial: float = 0.5,
        starts: int = 5000,
        equivariance: float = 0.0,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.9),
        weight_decay: float = 0.0,
        warmup: int = 0,
        decay: Decay = "constant",
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__", "scaling")}
        parts = {k: build(v) for k, v in parts.items()}  # specs from a checkpoint, else objects
        low = min(perceptual, adversarial, starts, weight_decay, warmup)
        if lr <= 0 or low < 0 or not 0 <= equivariance <= 1 or error not in ("l1", "mse"):
            raise ValueError(
                "Autoencoder: wanted error l1 or mse, lr > 0, equivariance in [0, 1], and perceptual, adversarial, "
                f"starts, weight_decay and warmup >= 0; got {error}, {lr}, {equivariance} and "
                f"{(perceptual, adversarial, starts, weight_decay, warmup)}"
            )
        self.scaling = Scaling.of(scaling)
        self.scaling.check(shape[0])
        if self.scaling != Scaling():
            parts["scaling"] = self.scaling.plain
        self.net = parts["net"]
        self.discriminator = Patches(shape[0], discriminator) if discriminator else None
        if (f := self.net.factor) and (shape[1] % f or shape[2] % f):
            raise ValueError(
                f"Autoencoder: {shape[1]}x{shape[2]} is not divisible by the network's factor {f}; give fewer mults"
            )
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.error, self.classifier, self.perceptual = error, classifier, perceptual
        self.adversarial, self.starts, self.equivariance = adversarial, starts, equivariance
        self.lr, self.betas, self.weight_decay, self.warmup, self.decay = lr, betas, weight_decay, warmup, decay
        self.seed, self.shape = seed, tuple(shape)
        self._stages: tuple[nn.Module, ...] = ()  # of the classifier; a tuple, so they are no weights of this system
        self._squares = torch.zeros(2, dtype=torch.float64)  # sum of squared errors and number of values, of this pass

    def setup(self, stage: str) -> None:
        if self.classifier and not self._stages:
            self._stages = stages_of(self.classifier, self.shape)

    # --- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        x0, due = batch[0], self.due(batch_idx)
        seed_streams(x0.device, self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank, 2)
        draws = StepDraws(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank, x0.device)
        coded = self.net.code(x0, draws.normal)
        z, target = coded.z, x0
        chance, turn, size = draws.uniform(3).tolist()
        if chance < self.equivariance:
            z, target = moved(z, x0, self.net.factor, int(4 * turn), size)
        out = self.net.decoder(z).float()
        error = self.distance(out, target)
        loss = error + coded.loss.mean() / x0[0].numel()
        if self.discriminator is not None:
            loss = loss + self.judged(out, target, error, due)
        if due:
            self.log_loss(loss)
            self.log("train/error", error.detach())
            self.log("train/bits", coded.bits.mean())
        return loss

    def distance(self, out: Tensor, target: Tensor) -> Tensor:
        """The error of a reconstruction, with the perceptual distance if there is a classifier."""
        error = F.l1_loss(out, target) if self.error == "l1" else F.mse_loss(out, target)
        if self.classifier and self.perceptual:
            stages = [stage.to(out.device) for stage in self._stages]
            error = error + self.perceptual * perceptual(stages, out, target)
        return error

    def judged(self, out: Tensor, target: Tensor, error: Tensor, due: bool) -> Tensor:
        """The decoder's and the discriminator's terms; before the start, a zero that depends on the discriminator."""
        if self.trainer.global_step < self.starts:
            return 0.0 * sum(p.sum() for p in self.discriminator.parameters())
        constant = {k: v.detach() for k, v in self.discriminator.state_dict(keep_vars=True).items()}
        generator = -torch.func.functional_call(self.discriminator, constant, (out,)).float().mean()
        weight = self.adversarial * balance(error, generator, self.net.final)
        real, fake = self.discriminator(target).float(), self.discriminator(out.detach()).float()
        hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        if due:
            self.log("train/generator", generator.detach())
            self.log("train/discriminator", hinge.detach())
            self.log("train/adversarial_weight", weight)
        return weight * generator + hinge

    # --- validation -------------------------------------------------------------------------------------

    def reconstructed(self, x0: Tensor) -> Tensor:
        """Images decoded from their latents without noise, limited to the range of the data if they are bounded."""
        out = self.net(x0).float()
        return out.clamp(-1, 1) if self.scaling.bounded else out

    def on_validation_epoch_start(self) -> None:
        self._squares.zero_()

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """The error of the reconstruction, and the information in the latents, in bits per image."""
        x0 = batch[0]
        out = self.reconstructed(x0)
        squares = (out - x0).double().square().sum().cpu()
        self._squares += torch.stack([squares, torch.tensor(x0.numel(), dtype=torch.float64)])
        # Multi-process averaging as in Classifier.
        options = {"sync_dist": True, "batch_size": len(x0) * self.trainer.world_size}
        self.log("val/loss", self.distance(out, x0), prog_bar=True, **options)
        self.log("val/bits", self.net.code(x0, torch.zeros_like).bits.mean(), **options)

    def on_validation_epoch_end(self) -> None:
        squares, count = self.trainer.strategy.reduce(self._squares.to(self.device).float(), reduce_op="sum").cpu()
        psnr = 10 * math.log10(RANGE**2 / max(float(squares / count), 1e-12))
        self.log("val/psnr", psnr, prog_bar=True, rank_zero_only=True)
        if isinstance(book := getattr(self.net, "bottleneck", None), Codebook):
            self.log("val/dead_codes", book.unused().float().cpu(), rank_zero_only=True)

    def configure_optimizers(self) -> dict:
        if self.decay != "constant" and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(f"Autoencoder: decay {self.decay!r} needs an end: set trainer.max_epochs or max_steps")
        optimizer = self.adamw(self.lr, self.betas, weight_decay=self.weight_decay)
        return scheduled(optimizer, self.trainer, self.warmup, self.decay)


def balance(error: Tensor, generator: Tensor, weights: nn.Parameter) -> Tensor:
    """|grad error| / (|grad generator| + 1e-4) at some weights, at most 1e4; source: see `Autoencoder`."""
    a, b = (torch.autograd.grad(loss, weights, retain_graph=True)[0].norm() for loss in (error, generator))
    return (a / (b + 1e-4)).clamp(max=1e4).detach()


def moved(z: Tensor, x0: Tensor, factor: int, turns: int, size: float) -> tuple[Tensor, Tensor]:
    """Latents and their images turned by `turns` right angles and scaled alike, to at least a quarter and 4 pixels.

    Args:
        size: in [0, 1), from the smallest to the full size; latents keep whole sides.
    """
    h, w = z.shape[-2:]
    share = 0.25 + 0.75 * size
    small = tuple(min(n, max(-(-4 // factor), round(share * n))) for n in (h, w))
    if small != (h, w):
        big = small[0] * factor, small[1] * factor
        z = F.interpolate(z, small, mode="bilinear", antialias=True)
        x0 = F.interpolate(x0, big, mode="bilinear", antialias=True)
    return z.rot90(turns, (-2, -1)), x0.rot90(turns, (-2, -1))


def stages_of(path: str, shape: Sequence[int]) -> tuple[nn.Module, ...]:
    """The convolutional stages of a trained classifier, frozen.

    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: it is not a classifier of such images, or has no stages.
    """
    found = load_extractor(path)
    if found.shape and tuple(found.shape) != tuple(shape):
        ours, theirs = ("x".join(map(str, s)) for s in (shape, found.shape))
        raise ValueError(f"{path}: a classifier of images of {theirs}, the autoencoder's are {ours}")
    stages = [part for part in getattr(found.net, "features", ()) if isinstance(part, nn.Sequential)]
    if not stages:
        raise ValueError(f"{path}: wanted a classifier with convolutional stages, such as FeatureNet")
    return tuple(stages)


def perceptual(stages: Sequence[nn.Module], out: Tensor, target: Tensor) -> Tensor:
    """The mean over stages of |f / |f| - g / |g||^2, averaged over pixels; f, g are the features of both images.

    Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1, with weights of 1.
    """
    total, f, g = 0.0, out, target
    for stage in stages:
        f, g = stage(f), stage(g)
        total = total + (F.normalize(f, dim=1) - F.normalize(g, dim=1)).square().sum(1).mean()
    return total / len(stages)
