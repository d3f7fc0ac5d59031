"""What --budget chooses: no end but the time's, and the batch that makes the most of it."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.data import ImageData
from diffusion.nets import speed
from diffusion.noise.draws import StepDraws
from diffusion.training.callbacks.budget import seconds
from diffusion.training.systems import Diffusion

ENOUGH = 0.7  # of the best images/s: a smaller batch that reaches it learns more in its more steps
PROFILE = 0.05  # of the budget, the most that choosing a batch may take
SIZES = (0.25, 0.5, 1, 2, 4)  # of the configured batch, what is tried
ENDLESS = 10**9  # steps, until they are planned


class Pace(NamedTuple):
    """What a budget has chosen: images a batch, the learning rate that goes with it, seconds of a step as it begins."""

    batch: int
    lr: float
    step: float

    def apply(self, config: Any, data: ImageData, model: Diffusion) -> None:
        """Train so, and write it into the configuration: a resumed run takes what it had."""
        data.batch_size = config.data.init_args.batch_size = self.batch
        model.lr = model.hparams["lr"] = config.model.lr = self.lr


def unlimited(config: Any, system: str) -> None:
    """What a budget means for the configuration: no other end, and a learning rate that falls to 0 at it.

    Raises:
        ValueError: it is no time, or the system cannot change its number of steps.
    """
    seconds(config.budget)
    if system != "Diffusion":
        raise ValueError(f"budget: {system} plans its learning rate ahead; set trainer.max_epochs")
    config.trainer.max_epochs, config.trainer.max_steps = -1, ENDLESS
    if config.model.decay == "constant":
        config.model.decay = "cosine"


def loss_of(model: Diffusion, batch: int) -> Tensor:
    """The loss of a batch of noise, as a training step computes it."""
    draws = StepDraws(model.seed, 0, 0, model.device)
    x0 = draws.normal(torch.empty(batch, *model.pipeline.shape, device=model.device))
    image = model.pipeline.hint(x0, draws.normal) if model.pipeline.hint else None
    y = model.pipeline.in_turn(batch)
    if y is None and model.pipeline.context_dim:
        y = torch.zeros(batch, model.pipeline.context_dim)
    cond = model.pipeline.condition(None if y is None else y.to(model.device), image)
    return model.objective(model.denoiser, x0, cond, draws.normal, draws.uniform).loss


def choose(config: Any, model: Diffusion, device: torch.device, recorded: dict, free: bool) -> Pace:
    """The batch size of a budget, and the learning rate.

    Many images/s need no large batch on a CPU and do on a GPU, so a few sizes are timed, and the smallest that comes
    near the best is taken, with lr in proportion to sqrt(batch) (Malladi et al. 2022, arXiv:2205.10287, for Adam).

    Args:
        recorded: the configuration of the run that goes on or starts again, whose choice stays; empty for a new one.
        free: False keeps the configured size.
    """
    configured, lr = config.data.init_args.batch_size, model.lr
    if recorded:
        configured, lr = recorded["data"]["init_args"]["batch_size"], recorded["model"]["lr"]
    factors = SIZES if free and not recorded else (1,)
    sizes = sorted({max(1, int(configured * f)) for f in factors}, key=lambda b: abs(math.log(b / configured)))
    limit = PROFILE * seconds(config.budget)
    batch, step = smallest(list(paces(model, sizes, config.trainer.precision, device, limit)))
    if batch != configured:
        lr *= math.sqrt(batch / configured)
    return Pace(batch, lr, step * (config.trainer.accumulate_grad_batches or 1))


def paces(
    model: Diffusion, batches: list[int], precision: str, device: torch.device, limit: float
) -> Iterator[tuple[int, float]]:
    """(batch, seconds of forward and backward pass) for each size that fits the memory, until the time is over."""
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
    """Of (batch, seconds), the smallest batch whose images/s are near the best."""
    best = max(batch / spent for batch, spent in found)
    return next(pair for pair in sorted(found) if pair[0] / pair[1] >= ENOUGH * best)
