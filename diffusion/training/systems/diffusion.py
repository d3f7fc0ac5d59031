"""The LightningModule that trains a denoiser."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diffusion.denoiser import Denoiser, load_denoiser
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.codecs.saved import load_codec
from diffusion.denoiser.hints import Hint, Paired
from diffusion.denoiser.targets import Eps, Target
from diffusion.generation.conditioning import HINTS
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Bound, Guidance, Plain
from diffusion.guidance.bounds import usual
from diffusion.loss.augment import NonLeaking
from diffusion.loss.objective import Objective
from diffusion.noise import Linear, Schedule
from diffusion.noise.draws import FixedDraws, StepDraws, seed_of, seed_streams
from diffusion.samplers import DDIM, Sampler
from diffusion.support.scaling import Scaling
from diffusion.support.specs import build, spec
from diffusion.training.systems import latents
from diffusion.training.systems.base import Decay, System, scheduled
from diffusion.training.systems.optimizers import AdamW, Optimizer
from diffusion.training.systems.told import prepare, refuse_changes

AUGMENT = 4  # key of the random stream of augmentations, as `HINTS`


class Diffusion(System):
    """A diffusion model: its parts, its training objective and its sampling settings.

    Its hyper-parameters are plain specs of its parts, so that one checkpoint file rebuilds the whole model.

    Args:
        net: forward(x, clock, y=None, keep=None) -> (B, C, H, W).
        schedule: the forward process.
        target: the quantity that the network predicts.
        objective: what training minimises.
        sampler: default sampler of previews, GIFs and `sample`.
        guidance: how a condition steers sampling.
        clamp: limit on the predicted x_0 while sampling; by default the range of the data if they are bounded, as 8-
            and 16-bit images are, else none.
        hint: the image that the network receives beside x, e.g. a smaller one or one with holes; none by default.
            The network's image_channels is linked to it.
        codec: from images to the latents that the denoiser works on, e.g. a trained autoencoder (`Frozen`); none by
            default. The network's channels are those of the latents.
        augment: augmentation of the training images that the network is told of; none by default. Its numbers are the
            last of the network's image_channels.
        optimizer: how gradients become steps; AdamW by default.
        lr: learning rate, > 0.
        betas: averaging constants of AdamW and RAdam.
        weight_decay: decoupled weight decay, >= 0.
        warmup: optimizer steps over which the learning rate rises from 0.
        decay: learning rate after the warm-up: constant, or decaying to 0 at the end of training: linear, cosine, or
            wsd, which is constant until the last fifth.
        seed: of training noise, validation noise and previews.
        shape: (C, H, W) of an image; linked from the data.
        class_names: names of classes or context features; linked from the data.
        scaling: from the data's raw values to x_0, a `Scaling` or its plain form; linked from the data.
        paired: arguments of the hint `Paired`, for data with an image for each image; linked from the data.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule = Linear(),
        target: Target = Eps(),
        objective: Objective = Objective(),
        sampler: Sampler = DDIM(),
        guidance: Guidance = Plain(),
        clamp: Bound | None = None,
        hint: Hint | None = None,
        codec: Codec | None = None,
        augment: NonLeaking | None = None,
        optimizer: Optimizer | None = None,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: int = 0,
        decay: Decay = "constant",
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
        class_names: Sequence[str] = (),
        scaling: Mapping[str, Any] | None = None,
        paired: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if paired and hint:
            raise ValueError(f"Diffusion: data with paired images take no hint, got {hint}; leave model.hint out")
        hint = Paired(**paired) if paired else hint
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__", "scaling", "paired")}
        parts = {k: build(v) for k, v in parts.items()}  # specs from a checkpoint, else objects
        self.optimizer = parts.pop("optimizer") or AdamW()
        if not isinstance(self.optimizer, AdamW):  # files of models trained by AdamW are as they were
            parts["optimizer"] = self.optimizer
        scaling = Scaling.of(scaling)
        scaling.check(shape[0])
        codec = parts.pop("codec") or Identity()
        if not isinstance(codec, Identity):  # files of models in pixels are as they were before there were codecs
            parts["codec"] = self.codec = codec.requires_grad_(False)
            latents.refuse(codec, parts["net"], shape, scaling)
        parts["clamp"] = parts["clamp"] or usual(scaling.bounded and isinstance(codec, Identity))
        if scaling != Scaling():  # files of 8-bit data are as they were before there were others
            parts["scaling"] = scaling.plain
        if lr <= 0 or weight_decay < 0 or warmup < 0:
            raise ValueError(
                "Diffusion: lr must be positive, weight_decay and warmup at least 0; "
                f"got {lr}, {weight_decay} and {warmup}"
            )
        if (augment := parts.pop("augment")) is not None:  # files of other models are as they were before it
            parts["augment"] = augment
            prepare(parts["net"], augment, paired=bool(paired))
        self.augment, told = augment, augment.numbers if augment else 0
        self.denoiser = denoiser = Denoiser(parts["net"], parts["schedule"], parts["target"], told)
        if denoiser.learn_variance != (parts["objective"].vlb > 0):
            raise ValueError(
                "Diffusion: a learned variance requires both net.learn_variance: true and objective.vlb: 0.001; "
                f"got {denoiser.learn_variance} and {parts['objective'].vlb}"
            )
        if parts["hint"] and (wanted := latents.hinted(parts["hint"], codec, shape)) != denoiser.image_channels:
            raise ValueError(
                f"Diffusion: {type(parts['hint']).__name__} adds an input image of {wanted} channels; "
                f"make the network with image_channels {wanted + told}, not {denoiser.image_channels + told}"
            )
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.denoiser.net.to(memory_format=torch.channels_last)  # fastest for convolutions
        how = (parts[name] for name in ("sampler", "guidance", "clamp", "hint"))
        self.pipeline = Pipeline(self.denoiser, *how, tuple(shape), tuple(class_names), seed, scaling, codec=codec)
        self.objective = parts["objective"]
        self.lr, self.betas, self.weight_decay, self.warmup, self.decay = lr, betas, weight_decay, warmup, decay
        self.seed = seed
        self._seen = 0  # validation images of this pass so far
        self._coded = False  # whether training batches are latents already

    # --- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict:
        """The loss of a batch and, for the callbacks, the squared error of x_0 (B,) and the level of each image."""
        x0, y, *pair = batch
        step = self.trainer.fit_loop.total_batch_idx  # over all epochs; restored on resume
        told = None
        if self.augment:
            changes = StepDraws(seed_of(self.seed, AUGMENT), step, self.global_rank)  # a stream of its own
            x0, told = self.augment(x0, changes.uniform, changes.normal, self.pipeline.scaling.bounded)
        cond = self.pipeline.condition(y)._replace(told=told)
        seed_streams(x0.device, self.seed, step, self.global_rank, 2)  # dropout takes no generator
        draws = StepDraws(self.seed, step, self.global_rank, x0.device)
        if isinstance(self.pipeline.hint, Paired):
            cond = cond._replace(image=self.pipeline.shown(x0, (), pair=pair[0] if pair else None))
        elif self.pipeline.hint:
            hint = StepDraws(seed_of(self.seed, HINTS), step, self.global_rank, x0.device)
            cond = cond._replace(image=self.pipeline.hint(x0, hint.normal))
        x0 = x0 if self._coded else self.pipeline.pixels.encode(x0)
        more = {"progress": self.progress} if self.objective.advances else {}
        terms = self.objective(self.denoiser, x0, cond, draws.normal, draws.uniform, **more)
        if self.due(batch_idx):
            self.log_loss(terms.loss)
            if terms.vlb is not None:
                self.log("train/mse", terms.mse.mean())
                self.log("train/vlb", terms.vlb.mean())  # bits per dimension, without the prior term
        if (times := self.objective.times).watches:  # gathered, so that all processes stay equal
            seen = self.all_gather((terms.t.t.flatten(), terms.mse.detach()))
            times.observe(*(v.flatten() for v in seen), self.denoiser.schedule)
        return {"loss": terms.loss, "error": terms.error, "level": terms.t}

    def on_fit_start(self) -> None:
        """Check the augmentation, and measure the latents unless a checkpoint has the measures."""
        data = getattr(self.trainer, "datamodule", None)
        if self.augment:
            refuse_changes(self.augment, data, self.pipeline.scaling.bounded)
        self._coded = latents.prepare(self, data)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if state := self.objective.times.state_dict():
            checkpoint["times"] = state

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "times" in checkpoint:
            self.objective.times.load_state_dict(checkpoint["times"])

    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """val/loss at evenly spread times and noise that is fixed across epochs and runs."""
        x0, y, *pair = batch
        indices = self.global_rank + self.trainer.world_size * (self._seen + torch.arange(len(x0)))
        self._seen += len(x0)
        draws = FixedDraws(self.seed, indices)
        # Nothing is dropped: the loss of the conditional model. `uniform` then draws only times.
        objective = Objective(drop=0.0, self_condition=0.0)
        cond = self.pipeline.condition(y, self.pipeline.shown(x0, indices.tolist(), pair=pair[0] if pair else None))
        x0 = self.pipeline.pixels.encode(x0)
        loss = objective(self.denoiser, x0, cond, draws.normal, draws.uniform).loss
        # Lightning divides the summed counts by the number of processes in integers; the product keeps this exact.
        count = len(x0) * self.trainer.world_size
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=count)

    def configure_optimizers(self) -> dict:
        if self.decay != "constant" and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(f"Diffusion: decay {self.decay!r} needs an end: set trainer.max_epochs or max_steps")
        strategy = self.trainer.strategy
        if self.optimizer.whole and not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"{type(self.optimizer).__name__} needs whole matrices, which {type(strategy).__name__} may shard over "
                "processes; use model.optimizer AdamW, or trainer.strategy ddp"
            )
        fused = self.trainer.precision != "16-mixed"  # there the optimizer would have to unscale before we clip
        options = {"betas": tuple(self.betas), "weight_decay": self.weight_decay, "fused": fused} | self.clipping
        optimizer = self.optimizer.of(self.groups(self.lr), self.denoiser.net, self.lr, **options)
        return scheduled(optimizer, self.trainer, self.warmup, self.decay)

    def configure_model(self) -> None:
        """Under Lightning's ModelParallelStrategy the network is one FSDP2 unit over the data-parallel processes.

        Between steps each process keeps only its part of the weights, gradients and optimizer state.
        """
        mesh, net = self.device_mesh, self.denoiser.net  # the mesh is None with other strategies
        if mesh is not None and not any(isinstance(p, DTensor) for p in net.parameters()):
            net.to(memory_format=torch.contiguous_format)  # the only layout that FSDP2 supports
            # Resharded after each forward pass, so that the weights are sharded when validation swaps in the averages.
            fully_shard(net, mesh=mesh["data_parallel"], reshard_after_forward=True)

    # --- checkpoints ------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str, weights: Literal["ema", "raw"] = "ema", device: torch.device | str = "cpu") -> "Diffusion":
        """The system of a checkpoint file or a run directory, for validation; use `Pipeline.load` to sample.

        Args:
            weights: the exponential moving average (where the run kept one), or the raw weights of the last step.
        Raises:
            FileNotFoundError: no checkpoint found.
            ValueError: not a valid checkpoint of a diffusion model of this project.
        """
        saved = load_denoiser(path, weights)
        codec = load_codec(saved)
        known = saved.hyper_parameters | ({} if isinstance(codec, Identity) else {"codec": codec})
        model = cls(**known).to(device).eval()
        model.denoiser.load_state_dict(saved.denoiser.state_dict())
        return model
