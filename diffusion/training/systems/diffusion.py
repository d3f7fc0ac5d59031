"""The LightningModule that trains a denoiser and samples from it."""

import math
from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diffusion.denoiser import Denoiser, load_denoiser
from diffusion.denoiser.hints import Hint
from diffusion.denoiser.targets import Eps, Target
from diffusion.generation.pipeline import HINTS, Pipeline
from diffusion.guidance import Bound, Clamp, Guidance, Plain
from diffusion.loss.objective import Objective
from diffusion.noise import Linear, Schedule
from diffusion.noise.draws import FixedDraws, StepDraws, seed_of, seed_streams
from diffusion.noise.level import Level
from diffusion.samplers import DDIM, Sampler
from diffusion.support.specs import build, spec
from diffusion.training.systems.base import due


class Diffusion(pl.LightningModule):
    """A diffusion model: what it is made of, how it learns, how it is sampled.

    Its hyper-parameters are plain specs of its parts, so that one checkpoint file rebuilds the whole model.

    Args:
        net: forward(x, clock, y=None, keep=None) -> (B, C, H, W).
        schedule: the forward process.
        target: what the network says.
        objective: what training minimises.
        sampler: how previews, GIFs and `sample` walk back, unless told otherwise.
        guidance: how a condition steers sampling.
        clamp: limit on the predicted x_0 while sampling.
        hint: what of an image the network is shown beside x: a smaller one, one with holes; none by default. The
            network's image_channels are linked to it.
        lr: learning rate of AdamW, > 0.
        betas: AdamW's averaging constants.
        weight_decay: AdamW's decoupled weight decay, >= 0.
        warmup: optimizer steps in which the learning rate rises from 0.
        decay: how the learning rate goes on from there, to 0 at the end of training or constant.
        seed: of training noise, validation noise and previews.
        shape: (C, H, W) of an image; linked from the data.
        class_names: names of classes or context features; linked from the data.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule = Linear(),
        target: Target = Eps(),
        objective: Objective = Objective(),
        sampler: Sampler = DDIM(),
        guidance: Guidance = Plain(),
        clamp: Bound = Clamp(),
        hint: Hint | None = None,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: int = 0,
        decay: Literal["constant", "linear", "cosine"] = "constant",
        seed: int = 0,
        shape: Sequence[int] = (1, 32, 32),
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        parts = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        parts = {k: build(v) for k, v in parts.items()}  # a checkpoint gives specs, everyone else objects
        if lr <= 0 or weight_decay < 0 or warmup < 0:
            raise ValueError(
                "Diffusion: lr must be positive, weight_decay and warmup at least 0; "
                f"got {lr}, {weight_decay} and {warmup}"
            )
        self.denoiser = denoiser = Denoiser(parts["net"], parts["schedule"], parts["target"])
        if denoiser.learn_variance != (parts["objective"].vlb > 0):
            raise ValueError(
                "Diffusion: a learned variance takes net.learn_variance: true and objective.vlb: 0.001 together; "
                f"got {denoiser.learn_variance} and {parts['objective'].vlb}"
            )
        if parts["hint"] and (channels := parts["hint"].shape(shape)[0]) != denoiser.image_channels:
            raise ValueError(
                f"Diffusion: {type(parts['hint']).__name__} shows an image of {channels} channels beside x; "
                f"make the network with image_channels {channels}, not {denoiser.image_channels}"
            )
        self.save_hyperparameters({k: spec(v) for k, v in parts.items()})
        self.denoiser.net.to(memory_format=torch.channels_last)  # what convolutions are fastest with
        names = ("sampler", "guidance", "clamp", "hint", "shape", "class_names", "seed")
        self.pipeline = Pipeline(self.denoiser, *(parts[name] for name in names))  # how it samples
        self.objective = parts["objective"]
        self.lr, self.betas, self.weight_decay, self.warmup, self.decay = lr, betas, weight_decay, warmup, decay
        self.seed = seed
        self._seen = 0  # validation images of this pass so far
        self.grad_norm: Tensor | None = None  # of the optimizer step under way, once somebody has measured it
        self.last: tuple[Tensor, Level] | None = None  # error of x_0 and level of each image of the last training step

    # --- training ---------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, y = batch
        step = self.trainer.fit_loop.total_batch_idx  # over all epochs, and restored when a run is resumed
        seed_streams(x0.device, self.seed, step, self.global_rank, 2)  # dropout: it knows no other
        draws = StepDraws(self.seed, step, self.global_rank, x0.device)
        hint = None
        if self.pipeline.hint:
            key = seed_of(self.seed, HINTS)
            hint = self.pipeline.hint(x0, StepDraws(key, step, self.global_rank, x0.device).normal)
        terms = self.objective(self.denoiser, x0, self.pipeline.condition(y, hint), draws.normal, draws.uniform)
        self.last = terms.error, terms.t
        if due(self.trainer, batch_idx):
            # On the CPU: Lightning reads what a bar shows after every step, also of the steps that log nothing.
            self.log("train/loss", terms.loss.detach().cpu(), prog_bar=True)
        if terms.vlb is not None and due(self.trainer, batch_idx):
            self.log("train/mse", terms.mse.mean())
            self.log("train/vlb", terms.vlb.mean())  # bits a dimension, without the prior's
        if (times := self.objective.times).watches:  # what all processes saw, so that all stay equal
            seen = self.all_gather((terms.t.t.flatten(), terms.mse.detach()))
            times.observe(*(v.flatten() for v in seen), self.denoiser.schedule)
        return terms.loss

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if state := self.objective.times.state_dict():
            checkpoint["times"] = state

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "times" in checkpoint:
            self.objective.times.load_state_dict(checkpoint["times"])

    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """val/loss at evenly spread times and fixed noise: the same question at every epoch and in every run."""
        x0, y = batch
        indices = self.global_rank + self.trainer.world_size * (self._seen + torch.arange(len(x0)))
        self._seen += len(x0)
        draws = FixedDraws(self.seed, indices)
        # Drop nothing: the loss of the conditional model. `uniform` is asked for times alone then.
        objective = Objective(drop=0.0, self_condition=0.0)
        cond = self.pipeline.condition(y, self.pipeline.shown(x0, indices.tolist()))
        loss = objective(self.denoiser, x0, cond, draws.normal, draws.uniform).loss
        # Lightning divides the sum of all processes' counts by their number, in whole numbers: so it comes out right.
        count = len(x0) * self.trainer.world_size
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=count)

    def configure_optimizers(self) -> dict:
        fused = self.trainer.precision != "16-mixed"  # there the optimizer would have to unscale before we clip
        optimizer = torch.optim.AdamW(
            self.parameters(), self.lr, tuple(self.betas), weight_decay=self.weight_decay, fused=fused
        )
        endless = self.trainer.max_epochs == -1 and self.trainer.max_steps == -1
        if self.decay != "constant" and endless:
            raise ValueError(f"Diffusion: decay {self.decay!r} needs an end: set trainer.max_epochs or max_steps")

        def factor(step: int) -> float:
            # Asking for the number of steps now would set the loader up before its place in the data is restored.
            return self.lr_factor(step, self.trainer.estimated_stepping_batches if step else math.inf)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def clip_gradients(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As `torch.nn.utils.clip_grad_norm_`, but the fused optimizer divides as it reads, by what `Guard` measured.

        Lightning's own, for all other cases, refuses a fused optimizer in bf16 too, where nothing is scaled.
        """
        norm, self.grad_norm = self.grad_norm, None
        fused = optimizer.param_groups[0].get("fused") and self.trainer.precision in ("32-true", "bf16-mixed")
        if not fused or not gradient_clip_val or gradient_clip_algorithm == "value":
            super().clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif self.device_mesh is not None:  # weights that are sharded over processes
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            if norm is None:
                norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            optimizer.grad_scale = ((norm + 1e-6) / gradient_clip_val).clamp(min=1.0)

    def lr_factor(self, step: int, total: float) -> float:
        """The learning rate at a step in units of `lr`: a linear rise over `warmup` steps, then `decay` to 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay == "constant":
            return rise
        done = min(1.0, max(0, step - self.warmup) / max(1, total - self.warmup))
        return rise * (1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def configure_model(self) -> None:
        """Under Lightning's ModelParallelStrategy the network is one FSDP2 unit over the data-parallel processes.

        Each keeps its part of the weights, gradients and the optimizer's state between two steps.
        """
        mesh, net = self.device_mesh, self.denoiser.net  # no mesh elsewhere
        if mesh is not None and not any(isinstance(p, DTensor) for p in net.parameters()):
            net.to(memory_format=torch.contiguous_format)  # all that FSDP2 takes
            # Sharded again after each forward pass: so are then the weights that validation swaps for the averages.
            fully_shard(net, mesh=mesh["data_parallel"], reshard_after_forward=True)

    # --- checkpoints ------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str, weights: Literal["ema", "raw"] = "ema", device: torch.device | str = "cpu") -> "Diffusion":
        """The system of a checkpoint file or a run directory, for validation; `Pipeline.load` samples.

        Args:
            weights: the exponential moving average (where the run kept one), or the raw weights of the last step.
        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: not a sound checkpoint of a diffusion model of this project.
        """
        saved = load_denoiser(path, weights)
        model = cls(**saved.hyper_parameters).to(device).eval()
        model.denoiser.load_state_dict(saved.denoiser.state_dict())
        return model
