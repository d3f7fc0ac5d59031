"""Every sampler on one digits model: class consistency and Frechet distance against network evaluations.

    python -m benchmarks.samplers lightning_logs/digits

Measures what is missing in the JSON file, then writes the table and the plot; it can be interrupted and restarted.
"""

import hashlib
import inspect
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks.report import write
from diffusion.data import Digits
from diffusion.generation.counting import Counted, evaluations
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.metrics import Judge, Labelled
from diffusion.samplers import DDPM, Sampler
from diffusion.support.console import machine
from diffusion.support.files import atomic
from diffusion.support.runs import find_checkpoint
from diffusion.support.specs import concrete, gather, spec


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    path = find_checkpoint(args.run)
    model = Pipeline.load(path, device=args.device)
    if model.shape != (1, 8, 8) or model.num_classes != 10:
        raise ValueError(f"{path}: the judge supports 8x8 digits only; this model generates {model.shape}")
    setting = {
        "checkpoint": hashlib.sha256(path.read_bytes()).hexdigest()[:12],
        "schedule": spec(model.denoiser.schedule),
        "target": spec(model.denoiser.target),
        "guidance": spec(model.guidance),
        "n": args.n,
        "seed": args.seed,
        "precision": args.precision,
    }
    saved = json.loads(args.json.read_text()) if args.json.exists() else {}
    if saved and saved["setting"] != setting:
        changed = ", ".join(k for k in setting if saved["setting"].get(k) != setting[k])
        raise ValueError(f"{args.json}: measured with a different {changed}; delete it, or give another --json")
    results = saved or {"setting": setting, "rows": []}
    judge = Judge(*(Labelled.of(*Digits().arrays(split)) for split in ("train", "test")))
    results |= {"floor": judge.floor, "accuracy": judge.accuracy, "machine": machine(model.device)}
    measure(model, model.guidance, judge, args, results)
    command = f"python -m benchmarks.samplers {args.run}" + "".join(f" {a}" for a in args.given)
    write(results, args.out, args.plot, command)
    print(f"written: {args.out}, {args.plot}")
    return 0


def parse(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser("benchmarks.samplers", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("run", help="run directory, experiment folder, or checkpoint file of a digits model")
    add("--n", type=int, default=1000, help="digits per cell, a tenth of each class (default 1000)")
    add("--steps", type=int, nargs="+", default=[10, 20, 50], help="steps of each sampler (default 10 20 50)")
    add("--reference", type=int, default=1000, help="steps of the DDPM reference (default 1000)")
    add("--scale", type=float, help="guidance; 1 is off (default: the run's)")
    add("--seed", type=int, default=1, help="default 1, as in the demo's report")
    add("--precision", choices=["32", "bf16"], default="32", help="of the network's calls (default 32)")
    add("--batch_size", type=int, default=500, help="default 500; does not affect the images")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add("--json", type=Path, default=Path("benchmarks/samplers.json"), help="file of the measurements")
    add("--out", type=Path, default=Path("docs/samplers.md"), help="the table (default docs/samplers.md)")
    add("--plot", type=Path, default=Path("docs/images/samplers.png"), help="default docs/images/samplers.png")
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    args.given = [w for w in words if w != args.run]
    if args.n < 20 or args.n % 10:
        raise ValueError(f"--n must be a multiple of 10 and at least 20, got {args.n}")
    return args


def cells(steps: list[int], reference: int) -> Iterator[Sampler]:
    """Every sampler of the package at each number of steps, or once if it takes no steps; then the reference."""
    gather("diffusion.samplers")
    for kind in sorted(concrete(Sampler), key=lambda k: k.__name__):
        if not kind.__module__.startswith("diffusion.") or kind.maps:  # the model is a denoiser
            continue
        stepped = "steps" in inspect.signature(kind).parameters
        yield from (kind(steps=n) for n in steps) if stepped else [kind()]
    yield DDPM(reference)


def measure(model: Pipeline, guidance: Guidance, judge: Judge, args: Namespace, results: dict) -> None:
    """Fill in the rows that are missing, cheapest first, and save after each."""
    known = {json.dumps(row["sampler"]) for row in results["rows"]}
    todo = {json.dumps(spec(s)): s for s in cells(args.steps, args.reference)}
    todo = [(evaluations(s, model.denoiser.schedule), s) for key, s in todo.items() if key not in known]
    every = 0.5 if sys.stderr.isatty() else 30  # seconds; logs get few updates
    total = args.n * sum(c for c, _ in todo)
    with tqdm(total=total, unit="eval", unit_scale=True, mininterval=every, smoothing=0.05) as bar:
        for _, sampler in sorted(todo, key=lambda pair: pair[0]):
            bar.set_description(f"{type(sampler).__name__} {getattr(sampler, 'steps', '')}".strip(), refresh=False)
            results["rows"].append(row(model, sampler, Counted(guidance, bar.update), judge, args))
            with atomic(args.json) as path:
                path.write_text(json.dumps(results, indent=1) + "\n")


def row(model: Pipeline, sampler: Sampler, guidance: Counted, judge: Judge, args: Namespace) -> dict:
    """Sample args.n digits, a tenth of each class in turn, and judge them."""
    y, begun, done = torch.arange(args.n) % 10, time.perf_counter(), []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
        for first in range(0, args.n, args.batch_size):
            part = y[first : first + args.batch_size]
            for frame in model.frames(len(part), part, args.seed, sampler, guidance, first):  # noqa: B007
                pass
            done.append(frame.x.float().cpu())
    x, seconds = torch.cat(done), time.perf_counter() - begun
    features, agrees = judge.net.features(x), judge.agrees(x, y).float()
    return {
        "sampler": spec(sampler),
        "evaluations": guidance.images / args.n,
        "agreement": float(agrees.mean()),
        "agreement_error": float(agrees.std() / args.n**0.5),
        "frechet": judge.distance(features),
        "frechet_error": judge.error(features),
        "spread": float(judge.spread(x, y).mean()),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
