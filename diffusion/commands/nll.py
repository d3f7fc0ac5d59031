"""`diffusion nll`: how likely a model finds the images of a split, in bits a dimension."""

import json
import math
from argparse import Namespace
from pathlib import Path

from torch import Tensor

from diffusion.data.recorded import constructor, kind_of, open_data
from diffusion.generation.arguments import taken
from diffusion.generation.pipeline import Pipeline
from diffusion.judging.nll import measure
from diffusion.options.parser import Parser, add_weights
from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import atomic, check_writable


def main(argv: list[str]) -> int:
    parser = Parser("nll", "Negative log-likelihood of a split in bits/dim: by the bound, by the ODE.", data=True)
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
    add_weights(parser)
    add("--batch_size", type=int, default=256, help="images at a time (default 256)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add("--out", type=Path, help="also write everything, image by image, to this .json file")
    args = parser.read(argv)
    if min(v for v in (args.batch_size, args.n, args.steps) if v is not None) < 1 or args.tolerance <= 0:
        raise ValueError("--n, --steps and --batch_size must be at least 1, and --tolerance positive")
    if args.out:
        check_writable(args.out)
    path = runs.find_checkpoint(args.run)
    model = Pipeline.load(path, args.weights, args.device)
    model.denoiser.requires_grad_(False)
    args.variance = args.variance or ("learned" if model.denoiser.learn_variance else "large")
    own, other = taken(args.data, {name: p.annotation for name, p in constructor(kind_of(path)).items()})
    images, y = (v[: args.n] for v in open_data(path, **own, **other).arrays(args.split))
    report(args, model, measure(args, model, images, y), shown(path))
    return 0


def report(args: Namespace, model: Pipeline, found: dict, path: Path) -> None:
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
