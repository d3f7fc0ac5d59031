"""`diffusion demo`: train on real digits, sample, evaluate the samples, and export."""

import time
from argparse import SUPPRESS
from pathlib import Path

import torch

from diffusion import pictures
from diffusion.commands.options.parser import Parser
from diffusion.data import ImageData
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import denoising
from diffusion.metrics import Judge, Labelled
from diffusion.support.console import board, clock, shown, tool
from diffusion.support.paths import CONFIGS
from diffusion.training.callbacks.pictures import averaged
from diffusion.training.callbacks.progress import Rate
from diffusion.training.run import train


def main(argv: list[str]) -> int:
    parser = Parser("demo", "Train on the included digits, sample, evaluate the samples, and export a grid and a GIF.")
    parser.epilog = "Options of `diffusion fit` are accepted as well, e.g. --trainer.max_epochs 20."
    parser.add_argument("--n", type=int, default=1000, help="samples to evaluate, a multiple of 10 (default 1000)")
    parser.add_argument("--config", default=str(CONFIGS / "digits.yaml"), help=SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    if args.n < 20 or args.n % 10:
        raise ValueError(f"--n must be a multiple of 10 and at least 20, got {args.n}")
    started = time.perf_counter()
    run = train(["-c", args.config, *rest], final=False)
    trainer, model = run.trainer, run.model
    if not trainer.is_global_zero:
        return 0
    print(f"\ntrained; now sampling {args.n:,} digits and judging them")
    with averaged(trainer, model):
        report(model.pipeline, run.data, run.folder, args.n)
    loss, rate = trainer.callback_metrics, next(c for c in trainer.callbacks if isinstance(c, Rate))
    pace = f"{rate.per_second:,.0f} images/s, {trainer.precision}"
    validation = f", validation {float(loss['val/loss']):.4f}" if "val/loss" in loss else ""
    print(f"""
  training         {trainer.global_step:,} steps in {clock(rate.seconds)}, {pace}
  loss             train {float(loss["train/loss"]):.4f}{validation}
  the whole demo   {clock(time.perf_counter() - started)}""")
    hints(run.folder)
    return 0


def report(model: Pipeline, data: ImageData, run: Path, n: int) -> None:
    """Sample n digits, a tenth of each class; write the grid and the GIF; print an independent evaluation."""
    y = torch.arange(n) % 10
    begun = time.perf_counter()
    x = model.sample(n, y, seed=1, batch_size=500, progress=True)
    seconds = time.perf_counter() - begun
    by_class = x[:100].view(-1, 10, *x.shape[1:]).transpose(0, 1).flatten(0, 1)  # one row per class
    sheet = pictures.grid(pictures.to_uint8(by_class), columns=len(x[:100]) // 10, scale=6)
    pictures.save_png(sheet, run / "samples" / "grid.png")
    frames = denoising(model, 20, seed=1, columns=10, scale=6)  # one column per class
    pictures.save_film(frames, run / "samples" / "denoising.gif")

    judge = Judge(*(Labelled.of(*data.arrays(split)) for split in ("train", "test")))
    agree, distance, spread = judge.agrees(x, y).float(), judge.distance(judge.net.features(x)), judge.spread(x, y)
    worst = min(range(10), key=lambda k: float(agree[y == k].mean()))
    print(f"""
  sampling         {n:,} digits in {seconds:.0f} s: {type(model.sampler).__name__}, {model.sampler.steps} steps, \
guidance scale {getattr(model.guidance, "scale", 1.0)}, EMA weights
  class agreement  {agree.mean():.1%} of the samples are classified as the requested digit (worst class {worst}: \
{agree[y == worst].mean():.0%}), by a
                   classifier that took no part in training and is right on {judge.accuracy:.1%} of \
the {len(judge.test.x)} test digits
  Frechet          {distance:.3f} to the training digits in that classifier's {judge.width} features; the test digits \
are at
                   {judge.floor:.3f}: {distance / judge.floor:.2f} of that floor (below 1 is good; n = {n:,})
  diversity        {spread.mean():.0%} of the real spread within a class (least: class {int(spread.argmin())}, \
{spread.min():.0%})
  copying          the nearest training digit is {judge.nearness(x):.2f} times as far as from a test digit (well \
below 1 would be copying)""")


def hints(run: Path) -> None:
    """Print the files, and commands to continue with."""
    path, diffusion = shown(run), tool("diffusion")
    print(f"""
files in {path}/
  samples/grid.png         one row per class
  samples/denoising.gif    from noise to digits
  samples/step*.png        the same samples in the course of training
  checkpoints/last.ckpt    raw and averaged weights, optimizer, everything needed to resume
  config.yaml              the whole configuration

next:
  {diffusion} sample {path} --label 3 --n 64 --out threes.png
  {diffusion} film {path} --n 9 --out denoising.gif
  {diffusion} fit -c {path}/config.yaml --resume {path} --trainer.max_epochs 180
  {board(path)}""")
