"""Likelihood of a split's images: by the variational bound and by the probability flow, in bits a dimension."""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion.generation.pipeline import Pipeline
from diffusion.likelihood import vlb
from diffusion.likelihood.flow import bits_per_dim, dequantise, log_likelihood
from diffusion.noise.draws import ImageDraws


def measure(args: Namespace, model: Pipeline, images: Tensor, y: Tensor) -> dict:
    """The table (steps + 1, N) of the bound, and the bits (N,) by the ODE."""
    schedule = model.denoiser.schedule
    steps = args.steps or schedule.T or 1000
    batches = math.ceil(len(images) / args.batch_size)
    found: dict = {"steps": steps, "dims": images[0].numel()}
    started = time.perf_counter()
    work = batches * {"vlb": steps, "ode": 1, "both": steps + 1}[args.method]
    every = 0.2 if sys.stderr.isatty() else 15
    with tqdm(total=work, desc="nll", mininterval=every) as bar:
        if args.method != "ode":
            table = [torch.stack(list(rows)) for rows in bounds(args, model, images, y, steps, bar)]
            found["vlb"] = torch.cat(table, dim=1)
        if args.method != "vlb":
            found["ode"] = torch.cat(list(flows(args, model, images, y, bar)))
    return found | {"seconds": time.perf_counter() - started}


def batches_of(args: Namespace, model: Pipeline, images: Tensor, y: Tensor) -> Iterator[tuple]:
    """(x0, condition, noise) of each batch, on the model's device; noise by image number."""
    for first in range(0, len(images), args.batch_size):
        mine = slice(first, first + args.batch_size)
        x0 = images[mine].to(model.device).float() / 127.5 - 1
        numbers = range(first, first + len(x0))
        cond = model.condition(None if args.unconditional else y[mine].to(model.device), model.shown(x0, numbers))
        yield x0, cond, ImageDraws(args.seed, numbers)


def bounds(args: Namespace, model: Pipeline, images: Tensor, y: Tensor, steps: int, bar: tqdm) -> Iterator[list]:
    """The terms L_0 .. L_T of each batch. A clamped x_0 is allowed: any reverse chain gives a bound."""
    for x0, cond, noise in batches_of(args, model, images, y):
        denoise = model.clamp(model.denoiser.bind(cond))
        rows = []
        for row in vlb.terms(denoise, x0, model.denoiser.schedule, steps, args.variance, noise=noise):
            rows.append(row.double().cpu())
            bar.update(len(rows) <= steps)  # the prior's term takes no time
        yield rows


def flows(args: Namespace, model: Pipeline, images: Tensor, y: Tensor, bar: tqdm) -> Iterator[Tensor]:
    """Bits of each batch by the probability flow, of pixels spread over their bins."""
    for x0, cond, noise in batches_of(args, model, images, y):
        density = log_likelihood(
            model.denoiser.bind(cond), dequantise(x0, noise), model.denoiser.schedule,
            "exact" if args.exact else "hutchinson", args.tolerance, args.tolerance, noise,
        )  # fmt: skip
        yield bits_per_dim(density.double().cpu(), x0[0].numel())
        bar.update()
