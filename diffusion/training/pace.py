"""The settings that --budget chooses: no other stopping criterion, and the batch size that suits the time."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.data import ImageData
from diffusion.denoiser.hints import Paired
from diffusion.nets import speed
from diffusion.noise.draws import StepDraws
from diffusion.training.callbacks.budget import seconds
from diffusion.training.systems import Diffusion

ENOUGH = 0.7  # of the best images/s: a smaller batch that reaches it takes more steps and learns more
PROFILE = 0.05  # largest share of the budget spent on choosing the batch size
SIZES = (0.25, 0.5, 1, 2, 4)  # candidates, as multiples of the configured batch size
RISE = 0.1  # largest share of the steps over which the learning rate rises
ENDLESS = 10**9  # steps, until `Budget` plans them


class Pace(NamedTuple):
    """The choice for a budget: images per batch, the matching learning rate and warm-up, and seconds per step."""

    batch: int
    lr: float
    warmup: int
    step: float

    def apply(self, config: Any, data: ImageData, model: Diffusion) -> None:
        """Set the data, model and configuration accordingly; a resumed run keeps what it had."""
        data.batch_size = config.data.init_args.batch_size = self.batch
        model.lr = model.hparams["lr"] = config.model.lr = self.lr
        model.warmup = model.hparams["warmup"] = config.model.warmup = self.warmup


def unlimited(config: Any, system: str) -> None:
    """Remove other stopping criteria from the configuration and let the learning rate decay to 0 at the end.

    Raises:
        ValueError: the budget is not a time, or the system cannot change its number of steps.
    """
    seconds(config.budget)
    if system != "Diffusion":
        raise ValueError(f"budget: {system} requires a fixed number of epochs; set trainer.max_epochs")
    config.trainer.max_epochs, config.trainer.max_steps = -1, ENDLESS
    if config.model.decay == "constant":
        config.model.decay = "cosine"


def loss_of(model: Diffusion, batch: int) -> Tensor:
    """The loss of a batch of noise, as a training step computes it."""
    draws = StepDraws(model.seed, 0, 0, model.device)
    x0 = draws.normal(torch.empty(batch, *model.pipeline.latent_shape, device=model.device))
    hint = model.pipeline.hint
    if isinstance(hint, Paired):
        image = draws.normal(torch.empty(batch, *hint.shape(model.pipeline.shape), device=model.device))
    else:
        image = hint(draws.normal(x0.new_empty(batch, *model.pipeline.shape)), draws.normal) if hint else None
    y = model.pipeline.in_turn(batch)
    if y is None and model.pipeline.context_dim:
        y = torch.zeros(batch, model.pipeline.context_dim)
    cond = model.pipeline.condition(None if y is None else y.to(model.device), image)
    return model.objective(model.denoiser, x0, cond, draws.normal, draws.uniform).loss


def choose(config: Any, model: Diffusion, device: torch.device, recorded: dict, free: bool) -> Pace:
    """The batch size of a budget, the learning rate and the length of its warm-up.

    A GPU needs a large batch for high throughput and a CPU does not, so a few sizes are timed, small ones first. The
    smallest one close to the best throughput is chosen, with lr proportional to sqrt(batch)
    (Malladi et al. 2022, arXiv:2205.10287, for Adam). The warm-up is at most a tenth of the expected steps.

    Args:
        recorded: the configuration of the run that is resumed or restarted, whose choice is kept; empty for a new run.
        free: whether the batch size may differ from the configured one.
    """
    configured, lr, warmup = config.data.init_args.batch_size, model.lr, model.warmup
    if recorded:
        configured, lr = recorded["data"]["init_args"]["batch_size"], recorded["model"]["lr"]
        warmup = recorded["model"].get("warmup", warmup)
    factors = SIZES if free and not recorded else (1,)
    sizes = sorted({max(1, int(configured * f)) for f in factors})
    limit = PROFILE * seconds(config.budget)
    batch, step = smallest(list(paces(model, sizes, config.trainer.precision, device, limit)))
    if batch != configured:
        lr *= math.sqrt(batch / configured)
    step *= config.trainer.accumulate_grad_batches or 1
    return Pace(batch, lr, warmup if recorded else min(warmup, int(RISE * seconds(config.budget) / step)), step)


def paces(
    model: Diffusion, batches: list[int], precision: str, device: torch.device, limit: float
) -> Iterator[tuple[int, float]]:
    """(batch, seconds per forward and backward pass) for each size that fits in memory, until time runs out."""
    model.to(device).train()
    begun = time.perf_counter()

    def step() -> None:
        mixed = torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
        with mixed:
            loss = loss_of(model, batch)
        loss.backward()

    for k, batch in enumerate(batches):
        try:
            spent = speed.seconds_of(step, device)
        except torch.cuda.OutOfMemoryError:
            if not k:
                raise
            continue
        finally:
            model.zero_grad(set_to_none=True)
        yield batch, spent
        if time.perf_counter() - begun > limit / 3:
            return


def smallest(found: list[tuple[int, float]]) -> tuple[int, float]:
    """The (batch, seconds) pair of the smallest batch whose images/s are close to the best."""
    best = max(batch / spent for batch, spent in found)
    return next(pair for pair in sorted(found) if pair[0] / pair[1] >= ENOUGH * best)
