"""`diffusion demo`: the whole way on real digits, and an honest report: train, sample, judge, export."""

import time
from argparse import SUPPRESS
from pathlib import Path

import torch

from diffusion import viz
from diffusion.callbacks.pictures import averaged, denoising
from diffusion.callbacks.progress import Rate, clock
from diffusion.commands.common import Parser
from diffusion.commands.doctor import bf16_is_fast
from diffusion.commands.fit import fit, shown, tool
from diffusion.data import ImageData
from diffusion.metrics import DigitsNet, Gaussian, frechet_distance, train_classifier
from diffusion.paths import REPO
from diffusion.systems import Diffusion


def main(argv: list[str]) -> int:
    parser = Parser("demo", "Train on the embedded digits, sample, judge the samples, and export a grid and a GIF.")
    parser.epilog = "Any option of `diffusion fit` can be given too, e.g. --trainer.max_epochs 20."
    parser.add_argument("--n", type=int, default=1000, help="pictures that are judged, a multiple of 10 (default 1000)")
    parser.add_argument("--config", default=str(REPO / "configs" / "digits.yaml"), help=SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    if args.n < 20 or args.n % 10:
        raise ValueError(f"--n must be a multiple of 10 and at least 20, got {args.n}")
    started = time.perf_counter()
    precision = "bf16-mixed" if torch.cuda.is_available() or bf16_is_fast() else "32-true"
    cli, run = fit(["-c", args.config, "--trainer.precision", precision, *rest], final=False)
    trainer, model = cli.trainer, cli.model
    if trainer.interrupted or not trainer.is_global_zero:
        return 130 if trainer.interrupted else 0
    print(f"\ntrained; now sampling {args.n:,} digits and judging them")
    with averaged(trainer, model):
        report(model, cli.datamodule, run, args.n)
    loss, rate = trainer.callback_metrics, next(c for c in trainer.callbacks if isinstance(c, Rate))
    print(f"""
  training         {trainer.global_step:,} steps in {clock(rate.seconds)}, {rate.per_second:,.0f} images/s, {precision}
  loss             train {float(loss["train/loss"]):.4f}, validation {float(loss.get("val/loss", float("nan"))):.4f}
  the whole demo   {clock(time.perf_counter() - started)}""")
    hints(run)
    return 0


def report(model: Diffusion, data: ImageData, run: Path, n: int) -> None:
    """Sample n digits, a tenth of each class; write the grid and the GIF; print what an independent judge says."""
    y = torch.arange(n) % 10
    begun = time.perf_counter()
    x = model.sample(n, y, seed=1, batch_size=500, progress=True)
    seconds = time.perf_counter() - begun
    by_class = x[:100].view(-1, 10, *x.shape[1:]).transpose(0, 1).flatten(0, 1)  # a row a class
    viz.save_png(viz.grid(viz.to_uint8(by_class), columns=len(x[:100]) // 10, scale=6), run / "samples" / "grid.png")
    frames = denoising(model, 20, seed=1, columns=10, scale=6)  # a column a class
    viz.save_gif(frames, run / "samples" / "denoising.gif")

    (train, labels), (test, truth) = ((scale(i), y) for i, y in (data.arrays("train"), data.arrays("test")))
    judge = train_classifier(train, labels)
    real, held, made = (Gaussian.of(judge.features(v)) for v in (train, test, x))
    floor, distance = frechet_distance(real, held), frechet_distance(real, made)
    agree = (judge(x).argmax(1) == y).float()
    worst = min(range(10), key=lambda k: float(agree[y == k].mean()))
    spread = torch.tensor([spread_of(x[y == k]) / spread_of(train[labels == k]) for k in range(10)])
    near, usual = (float(nearest(v, train).mean()) for v in (x, test))
    print(f"""
  sampling         {n:,} digits in {seconds:.0f} s: {type(model.sampler).__name__}, {model.sampler.steps} steps, \
guidance scale {getattr(model.guidance, "scale", 1.0)}, EMA weights
  class agreement  {agree.mean():.1%} of the samples are seen as the digit asked for (worst class {worst}: \
{agree[y == worst].mean():.0%}), by a
                   classifier that took no part in training and is right on {accuracy(judge, test, truth):.1%} of \
the {len(test)} test digits
  Frechet          {distance:.3f} to the training digits in that classifier's {judge.width} features; the test digits \
are at
                   {floor:.3f}: {distance / floor:.2f} of that floor (below 1 is good; n = {n:,})
  diversity        {spread.mean():.0%} of the real spread within a class (least: class {int(spread.argmin())}, \
{spread.min():.0%})
  copying          the nearest training digit is {near / usual:.2f} times as far as from a test digit (well below 1 \
would be copying)""")


def scale(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def accuracy(judge: DigitsNet, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((judge(x).argmax(1) == y).float().mean())


def spread_of(x: torch.Tensor) -> float:
    """Mean distance between two different images of a set."""
    return float(torch.pdist(x.flatten(1)).mean())


def nearest(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Distance (N,) from each image to the nearest of the others, in pixels."""
    return torch.cdist(x.flatten(1), others.flatten(1)).min(1).values


def hints(run: Path) -> None:
    """The files, and the exact next commands."""
    path, diffusion = shown(run), tool("diffusion")
    print(f"""
files in {path}/
  samples/grid.png         a row a class
  samples/denoising.gif    from noise to digits
  samples/step*.png        the same pictures as training went on
  checkpoints/last.ckpt    raw and averaged weights, optimizer, everything to resume
  config.yaml              the whole configuration

next:
  {diffusion} sample {path} --label 3 --n 64 --out threes.png
  {diffusion} gif {path} --n 9 --out denoising.gif
  {diffusion} fit -c {shown(REPO / "configs" / "digits.yaml")} --resume {path} --trainer.max_epochs 180
  {tool("tensorboard")} --logdir {path.parent}""")
