"""GPU utilisation: model FLOPs over the measured peak, ten epochs of MNIST, and loss at equal wall-clock time.

    python -m benchmarks.gpu flops [--batch 128 512 2048] [--compile default]
    python -m benchmarks.gpu mnist [--epochs 10] [--out runs]       needs MNIST's files in $DIFFUSION_DATA
    python -m benchmarks.gpu race [--minutes 3] [--out runs]        likewise; trains two sides one after the other

flops: the FLOPs of forward and backward pass (three times the forward pass's, counted by torch) of a training step in
bf16, divided by its time, relative to this device's fastest bf16 matrix product of 2^10 .. 2^13. mnist: the
reference network through `diffusion fit`, with its time, val/loss, grid and GIF. race: `diffusion fit --budget` against
the bare float32 loop of the original code, on the same data for the same time, by the same validation loss. On a CPU,
--small runs each as a functional check.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine, save, seconds, wait
from benchmarks.origin import Origin
from diffusion import Diffusion, Pipeline
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet, UNet, speed
from diffusion.noise import Linear
from diffusion.noise.draws import FixedDraws
from diffusion.training.pace import loss_of
from diffusion.training.run import train

SMALL = [
    "--data.limit", "320", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
    "--trainer.check_val_every_n_epoch", "1",
]  # fmt: skip


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak(small: bool) -> float:
    """FLOPs per second of the fastest square bf16 matrix product."""
    best = 0.0
    for n in (512,) if small else (1024, 2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
        a @ b
        repeats = 2 if small else 20
        spent = min(seconds(lambda a=a, b=b, k=repeats: [a @ b for _ in range(k)]) for _ in range(3)) / repeats
        best = max(best, 2 * n**3 / spent)
    return best


def networks(small: bool) -> dict[str, tuple[torch.nn.Module, tuple[int, int, int]]]:
    """The reference network on 1x32x32, and DDPM's for CIFAR-10."""
    if small:
        return {"small": (AttentionUNet(1, (16, 32), heads=2), (1, 16, 16))}
    return {
        "reference": (AttentionUNet(1), (1, 32, 32)),
        "cifar10": (UNet(3, 128, (1, 2, 2, 2), 2, (1,), 256, scale_shift=False, dropout=0.1), (3, 32, 32)),
    }


def flops(args: argparse.Namespace) -> dict:
    best, rows = peak(args.small), []
    print(f"{machine()}; bf16 matrix products: {best / 1e12:.1f} TFLOP/s")
    for name, (net, shape) in networks(args.small).items():
        model = Diffusion(net, Linear(), shape=shape).to(device()).train()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.denoiser.net(torch.randn(1, *shape, device=device()), torch.zeros(1, device=device()))
        each = 3 * counter.get_total_flops()
        optimizer = torch.optim.AdamW(model.parameters(), 2e-4, fused=True)
        if args.compile:
            speed.compiled(model.denoiser.net, args.compile)

        def step(batch: int, model=model, optimizer=optimizer) -> None:
            with torch.autocast(device().type, torch.bfloat16):
                loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        for batch in args.batch:
            spent = speed.seconds_of(lambda b=batch: step(b), device(), rounds=2 if args.small else 20)
            share = each * batch / spent / best
            rows.append({"network": name, "batch": batch, "step_s": spent, "flops": each * batch, "of_peak": share})
            print(f"{name}, batch {batch}: {batch / spent:,.0f} images/s, {share:.1%} of the peak", flush=True)
    return {"peak_flops": best, "compile": args.compile, "rows": rows}


def data(small: bool) -> list[str]:
    where = ["-c", "configs/digits.yaml"] if small else ["-c", "configs/mnist.yaml"]
    return where + (SMALL if small else [])


def mnist(args: argparse.Namespace) -> dict:
    begun = time.perf_counter()
    run = train([*data(args.small), "--trainer.max_epochs", str(args.epochs), "--out", str(args.out)])
    loss = float(run.trainer.callback_metrics["val/loss"])
    return {"epochs": args.epochs, "seconds": time.perf_counter() - begun, "val_loss": loss, "run": run.folder.name}


def race(args: argparse.Namespace) -> dict:
    """val/loss of both after the same time, on the same images, levels and noise."""
    minutes = ["--budget", f"{60 * args.minutes:g}s", "--data.labels", "false", "--experiment", "race"]
    run = train([*data(args.small), *minutes, "--out", str(args.out)])
    ours = Pipeline.load(run.folder, device=device())
    net = AttentionUNet(1, (8, 16), heads=2, attention=1) if args.small else AttentionUNet(1)
    origin = Origin(net.to(device()), run.data.arrays("train")[0], run.data.batch_size)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < 60 * args.minutes:
        origin.step()
        steps += 1
    wait()
    theirs = Diffusion(net, Linear(), shape=ours.shape).to(device())
    test = run.data.arrays("test")[0]
    return {
        "minutes": args.minutes, "steps": run.trainer.global_step, "origin_steps": steps,
        "eps_mse": asked(ours, test), "origin_eps_mse": asked(theirs, test),
    }  # fmt: skip


@torch.no_grad()
def asked(model: Diffusion | Pipeline, images: torch.Tensor, n: int = 2000) -> float:
    """The mean squared error of eps on the first test images, at times and noise that are the same for every model."""
    model.denoiser.eval()
    total, images = 0.0, images[:n]
    for first in range(0, len(images), 500):
        part = slice(first, min(first + 500, len(images)))
        x0 = images[part].to(device()).float() / 127.5 - 1
        draws = FixedDraws(0, torch.arange(part.start, part.stop))
        level = model.denoiser.schedule.level(Objective().times(draws.uniform(len(x0)), model.denoiser.schedule))
        eps, t = draws.normal(x0), level.like(x0)
        found = model.denoiser(t.alpha * x0 + t.sigma * eps, level).eps
        total += float((found - eps).square().mean()) * len(x0)
    return total / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["flops", "mnist", "race"])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--compile", default="")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--small", action="store_true", help="a tiny network on digits, as a functional check")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    found = {"flops": flops, "mnist": mnist, "race": race}[args.what](args)
    print(found if args.what != "flops" else "")
    if not args.small:
        print(f"written: {save(f'gpu-{args.what}', found)}")


if __name__ == "__main__":
    main()
