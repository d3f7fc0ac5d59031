"""Quality with 1 to 5 evaluations: a run under DDIM and UniPC beside the runs that were tuned from it.

    python -m benchmarks.few_steps RUN TUNED [TUNED ...] [--n 1000] [--seeds 1,2] [--plot plot.png] [--sheet sheet.png]

Class agreement, and the Frechet distance in units of its floor, that of as many test images; digits are judged by the
demo's judge, other data by that of `diffusion evaluate`. The figures are means over the seeds of the samples, with
their range. Every run has its own guidance. The sheet shows the same noise under each setting, one row each.
"""

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import machine, save
from diffusion import Pipeline, evaluate, pictures
from diffusion.data import Digits
from diffusion.metrics import Judge, Labelled
from diffusion.pictures.plots import lines
from diffusion.samplers import DDIM, Consistency, Sampler, UniPC
from diffusion.support import runs
from diffusion.training.resume import read_config

BASE = (DDIM(1), DDIM(2), DDIM(4), UniPC(5), UniPC(10))
TUNED = (Consistency(1), Consistency(2), Consistency(4))


class Row(NamedTuple):
    """A run under a sampler: agreement and Frechet distance / floor, by seed."""

    run: str
    sampler: str
    steps: int
    agreement: list[float]
    ratio: list[float]


def judge_of(digits: Digits):
    """The demo's judge: returns (agreement, Frechet distance / floor) of a run's samples."""
    judge = Judge(*(Labelled.of(*digits.arrays(split)) for split in ("train", "test")))

    def judged(run: str, sampler: Sampler, n: int, seed: int) -> tuple[float, float]:
        y = torch.arange(n) % 10
        x = Pipeline.load(run).sample(n, y, seed=seed, sampler=sampler, batch_size=500)
        return float(judge.agrees(x, y).float().mean()), judge.distance(judge.net.features(x)) / judge.floor

    return judged


def evaluated(run: str, sampler: Sampler, n: int, seed: int) -> tuple[float, float]:
    """The same by `diffusion evaluate`, which stores its results in the run."""
    how = {"sampler": type(sampler).__name__, "steps": sampler.steps, "metrics": "frechet,consistency", "seed": seed}
    found = {f["metric"]: f for f in evaluate(run, n, **how).records[0]["figures"]}
    return found["consistency"]["value"], found["frechet"]["value"] / found["frechet"]["floor"]


def said(values: list[float], style: str) -> str:
    """Mean and range."""
    mean = format(statistics.fmean(values), style)
    return f"{mean} ({min(values):{style}} .. {max(values):{style}})" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="of a denoiser")
    parser.add_argument("tuned", nargs="+", help="runs for the sampler Consistency")
    parser.add_argument("--n", type=int, default=1000, help="samples judged (default 1000)")
    parser.add_argument("--seeds", default="1,2", help="of the samples (default 1,2)")
    parser.add_argument("--plot", type=Path, help="file for a plot of the Frechet distances")
    parser.add_argument("--sheet", type=Path, help="file for a sheet of samples")
    args = parser.parse_args()
    seeds = [int(word) for word in args.seeds.split(",")]
    models = {run: Pipeline.load(run) for run in (args.run, *args.tuned)}
    kind = read_config(runs.directory(runs.find_checkpoint(args.run)))["data"]["class_path"]
    judged = judge_of(Digits()) if kind.rpartition(".")[2] == "Digits" else evaluated
    rows, strips = [], []
    for run, model in models.items():
        for sampler in BASE if run == args.run else TUNED:
            found = [judged(run, sampler, args.n, seed) for seed in seeds]
            name = Path(run).parent.name if Path(run).name.startswith("version_") else Path(run).name
            rows.append(Row(name, type(sampler).__name__, sampler.steps, *map(list, zip(*found, strict=True))))
            labels = torch.arange(20) % model.num_classes if model.num_classes else None
            strips.append(model.sample(20, labels, seed=1, sampler=sampler))
    print(f"{args.n:,} samples, seeds {args.seeds}; {machine()}\n")
    print("| model | sampler | evaluations | agreement | Frechet / floor |\n|---|---|---:|---:|---:|")
    for row in rows:
        agreement = said([100 * v for v in row.agreement], ".1f")
        print(f"| {row.run} | {row.sampler} | {row.steps} | {agreement} % | {said(row.ratio, '.2f')} |")
    if args.plot:
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            groups.setdefault(f"{row.run}, {row.sampler}", []).append((row.steps, statistics.fmean(row.ratio)))
        figure = lines(groups, "network evaluations per image")
        axes = figure.axes[0]
        axes.set(yscale="log", ylim=(0.5, None), ylabel="Frechet distance / floor")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.axhline(1, color="0.5", lw=1, ls="--")
        figure.savefig(args.plot, dpi=100)
    if args.sheet:
        pictures.save_png(pictures.grid(pictures.to_uint8(torch.cat(strips)), 20, scale=3), args.sheet)
    print(save("few_steps", {"n": args.n, "seeds": seeds, "rows": [row._asdict() for row in rows]}))


if __name__ == "__main__":
    main()
