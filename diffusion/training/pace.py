"""How a run is made fast on this machine: the precision it trains in, and what --budget chooses."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import yaml
from torch import Tensor

from diffusion.nets import speed
from diffusion.noise.draws import StepDraws
from diffusion.support import runs
from diffusion.training.callbacks import Budget
from diffusion.training.callbacks.budget import seconds
from diffusion.training.systems import Diffusion

ENOUGH = 0.7  # of the best images/s: a smaller batch that reaches it learns more in its more steps
PROFILE = 0.05  # of the budget, the most that choosing a batch may take
SIZES = (0.25, 0.5, 1, 2, 4)  # of the configured batch, what is tried
ENDLESS = 10**9  # steps, until they are planned


def unlimited(cli: Any) -> None:
    """What a budget means for the configuration: no other end, and a learning rate that falls to 0 at it.

    Raises:
        ValueError: it is no time, or the system cannot change its number of steps.
    """
    seconds(cli.config.budget)
    if cli.system != "Diffusion":
        raise ValueError(f"budget: {cli.system} plans its learning rate ahead; set trainer.max_epochs")
    cli.config.trainer.max_epochs, cli.config.trainer.max_steps = -1, ENDLESS
    if cli.config.model.decay == "constant":
        cli.config.model.decay = "cosine"


def settle(cli: Any) -> str:
    """Choose what was left to us, and write it into the configuration: a resumed run takes what it had.

    Sets `cli.why` and `cli.budget`, and prepares the network.

    Returns:
        Lightning's name of the precision.
    """
    config, model = cli.config, cli.model
    before = recorded(cli)
    device = of(config.trainer)
    alone = config.trainer.devices in ("auto", 1, "1") and "LOCAL_RANK" not in os.environ
    cli.why, cli.budget = "", []
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, where it is float32 at all
    net = (model.denoiser if cli.system == "Diffusion" else model).net
    if config.recompute:
        speed.recomputed(net)
    if config.layout and config.layout not in speed.LAYOUTS:
        raise ValueError(f"layout: wanted {' or '.join(speed.LAYOUTS)}, got {config.layout!r}")
    if before:
        config.trainer.precision = config.trainer.precision or before["trainer"].get("precision") or "32-true"
        config.layout = config.layout or before.get("layout")
    elif config.trainer.precision is None or config.trainer.precision == "bf16-mixed" and not config.layout:
        measure = alone and cli.system == "Diffusion"
        size = cli.datamodule.batch_size
        found = speed.fastest(net, lambda n: loss_of(model, n), size, device, measure)
        model.zero_grad(set_to_none=True)
        if config.trainer.precision is None:
            config.trainer.precision, cli.why = found.precision, f" ({found.reason})"
        config.layout = config.layout or found.layout
    config.layout = config.layout or ("channels_last" if cli.system == "Diffusion" else "contiguous")
    net.to(memory_format=speed.LAYOUTS[config.layout])
    if config.budget:
        cli.budget = [budget(cli, device, before, alone)]
    if config.compile:
        speed.compiled(net, config.compile)
    return config.trainer.precision


def recorded(cli: Any) -> dict:
    """The configuration of the run that is resumed, if there is one."""
    path = cli.resume and runs.directory(cli.resume.path) / "config.yaml"
    return yaml.safe_load(path.read_text()) if path and path.is_file() else {}


def of(trainer: Any) -> torch.device:
    """The device that Lightning will choose for this process."""
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if trainer.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


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


def budget(cli: Any, device: torch.device, before: dict, choose: bool) -> Budget:
    """The callback that keeps the time; the batch size too, and the learning rate that goes with it.

    Many images/s need no large batch on a CPU and do on a GPU, so a few sizes are timed, and the smallest that comes
    near the best is taken, with lr in proportion to sqrt(batch) (Malladi et al. 2022, arXiv:2205.10287, for
    Adam). A size on the command line stays, as does a resumed run's.
    """
    config, data, model = cli.config, cli.datamodule, cli.model
    total, configured = seconds(config.budget), data.batch_size
    if before:
        data.batch_size = config.data.init_args.batch_size = before["data"]["init_args"]["batch_size"]
        model.lr = model.hparams["lr"] = config.model.lr = before["model"]["lr"]
        sizes = [data.batch_size]
    elif choose and not cli.given("data.batch_size"):
        sizes = sorted({max(1, int(configured * f)) for f in SIZES}, key=lambda b: abs(math.log(b / configured)))
    else:
        sizes = [configured]
    batch, step = smallest(list(paces(model, sizes, config.trainer.precision, device, PROFILE * total)))
    if batch != data.batch_size:
        data.batch_size = config.data.init_args.batch_size = batch
        model.lr = model.hparams["lr"] = config.model.lr = model.lr * math.sqrt(batch / configured)
    return Budget(total, step * (config.trainer.accumulate_grad_batches or 1), cli.started)


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
