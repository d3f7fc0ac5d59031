"""`diffusion nll`: how likely a model finds the images of a split, in bits a dimension."""

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion import runs, vlb
from diffusion.commands.common import Parser, check_writable, device
from diffusion.commands.fit import quiet, recorded, shown
from diffusion.likelihood import bits_per_dim, dequantise, log_likelihood
from diffusion.noise.draws import ImageDraws
from diffusion.systems import Diffusion
from diffusion.tools import atomic


def main(argv: list[str]) -> int:
    parser = Parser("nll", "Negative log-likelihood of a split in bits/dim: by the variational bound, by the ODE.")
    parser.epilog = "Options of `diffusion fit` for the data can be given too, e.g. --data.root."
    add = parser.add_argument
    add("run", help="run directory, experiment folder, or checkpoint file")
    add("--method", choices=["both", "vlb", "ode"], default="both", help="default both")
    add("--split", choices=["train", "test"], default="test", help="default test")
    add("--n", type=int, help="only the first n images (default: all)")
    add("--steps", type=int, help="length of the bound's chain (default: T, or 1000)")
    add("--variance", choices=["small", "large", "learned"], help="of its steps (default: learned, else large)")
    add("--exact", action="store_true", help="the ODE's divergence in full, not by a random probe: D times the cost")
    add("--tolerance", type=float, default=1e-3, help="of the ODE's solver (default 1e-3)")
    add("--unconditional", action="store_true", help="leave the labels out (default: given its label)")
    add("--seed", type=int, default=0, help="of noise, probes and dequantisation (default 0)")
    add("--weights", choices=["ema", "raw"], default="ema", help="averaged or raw weights (default ema)")
    add("--batch_size", type=int, default=256, help="images at a time (default 256)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add("--out", type=Path, help="also write everything, image by image, to this .json file")
    args, rest = parser.parse_known_args(argv)
    if min(v for v in (args.batch_size, args.n, args.steps) if v is not None) < 1 or args.tolerance <= 0:
        raise ValueError("--n, --steps and --batch_size must be at least 1, and --tolerance positive")
    if args.out:
        check_writable(args.out)
    quiet()
    path = runs.find_checkpoint(args.run)
    model = Diffusion.load(path, args.weights, device(args.device)).requires_grad_(False)
    args.variance = args.variance or ("learned" if model.objective.vlb else "large")
    images, y = (v[: args.n] for v in recorded(path, rest).datamodule.arrays(args.split))
    report(args, model, measure(args, model, images, y), shown(path))
    return 0


def measure(args: Namespace, model: Diffusion, images: Tensor, y: Tensor) -> dict:
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


def batches_of(args: Namespace, model: Diffusion, images: Tensor, y: Tensor) -> Iterator[tuple]:
    """(x0, condition, noise) of each batch, on the model's device; noise by image number."""
    for first in range(0, len(images), args.batch_size):
        mine = slice(first, first + args.batch_size)
        x0 = images[mine].to(model.device).float() / 127.5 - 1
        numbers = range(first, first + len(x0))
        cond = model.condition(None if args.unconditional else y[mine].to(model.device), model.shown(x0, numbers))
        yield x0, cond, ImageDraws(args.seed, numbers)


def bounds(args: Namespace, model: Diffusion, images: Tensor, y: Tensor, steps: int, bar: tqdm) -> Iterator[list]:
    """The terms L_0 .. L_T of each batch. A clamped x_0 is allowed: any reverse chain gives a bound."""
    for x0, cond, noise in batches_of(args, model, images, y):
        denoise = model.clamp(model.denoiser.bind(cond))
        rows = []
        for row in vlb.terms(denoise, x0, model.denoiser.schedule, steps, args.variance, noise=noise):
            rows.append(row.double().cpu())
            bar.update(len(rows) <= steps)  # the prior's term takes no time
        yield rows


def flows(args: Namespace, model: Diffusion, images: Tensor, y: Tensor, bar: tqdm) -> Iterator[Tensor]:
    """Bits of each batch by the probability flow, of pixels spread over their bins."""
    for x0, cond, noise in batches_of(args, model, images, y):
        density = log_likelihood(
            model.denoiser.bind(cond), dequantise(x0, noise), model.denoiser.schedule,
            "exact" if args.exact else "hutchinson", args.tolerance, args.tolerance, noise,
        )  # fmt: skip
        yield bits_per_dim(density.double().cpu(), x0[0].numel())
        bar.update()


def report(args: Namespace, model: Diffusion, found: dict, path: Path) -> None:
    """Means with their standard errors, and where in the chain the bound's bits are."""
    totals = {k: v.sum(0) if k == "vlb" else v for k, v in found.items() if k in ("vlb", "ode")}
    n = len(next(iter(totals.values())))
    given = "given the labels, " if model.num_classes + model.context_dim and not args.unconditional else ""
    print(
        f"{path}: {n:,} images of the {args.split} split, {found['dims']:,} dimensions, {given}{args.weights} weights, "
        f"seed {args.seed}, {found['seconds']:.0f} s on {model.device}"
    )
    how = {
        "vlb": f"variational bound, {found['steps']:,} steps, variance {args.variance}",
        "ode": f"probability flow, {'exact' if args.exact else 'Hutchinson'} divergence, uniform dequantisation",
    }
    for name, bits in totals.items():
        error = float(bits.std()) / n**0.5 if n > 1 else math.nan
        print(f"  {name}  {bits.mean():.4f} +- {error:.4f} bits/dim  ({how[name]})")
    if "vlb" in found:
        print(table(found["vlb"].mean(1)))
    if args.out:
        plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in found.items()}
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(vars(args) | {"out": str(args.out)} | plain))
        print(f"every term of every image: {args.out}")


def table(terms: Tensor) -> str:
    """L_0, tenths of the chain, and L_T, as lines of text."""
    T = len(terms) - 1
    edges = sorted({1 + (T - 1) * k // 10 for k in range(11)})
    lines = [("L_0", float(terms[0]))]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        lines.append((f"L_{a}" if b == a + 1 else f"L_{a} .. L_{b - 1}", float(terms[a:b].sum())))
    lines.append((f"L_{T} (prior)", float(terms[-1])))
    return "\n".join(f"    {name:20}{bits:10.5f}" for name, bits in lines)
