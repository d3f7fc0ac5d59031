"""CIFAR-10 for a given time, with a grid, a film, and averaged weights in float16 for the next time.

    python -m benchmarks.half_hour.cifar --seconds 600 --out runs [--init FILE] [--width 96] [--small]

The recipe is configs/cifar10_best.yaml with a narrower network, whose weights fit into what is brought home. --init
begins with the weights of the last time, so that several times add up to one long training; the optimizer and the
learning rate begin anew.
"""

import argparse
import time
from pathlib import Path

from benchmarks.common import machine, save
from diffusion.exchange.exporting.export import export
from diffusion.training.callbacks import Rate
from diffusion.training.run import train

ENDING = 60  # seconds for the imports and the export, which no budget knows of, and for what it misjudges


def options(args: argparse.Namespace) -> list[str]:
    """The words of `diffusion fit`."""
    if args.small:
        net = ["--model.net.widths", "[8,16]", "--model.net.attention", "1", "--data.batch_size", "32"]
        return ["-c", "configs/digits.yaml", "--data.limit", "320", *net, "--samples.n", "4", "--gif.n", "1"]
    return ["-c", "configs/cifar10_best.yaml", "--model.net.width", str(args.width), "--data.batch_size", "512",
            "--posthoc.snapshots", "0", "--samples.every_n_epochs", "0", "--trainer.check_val_every_n_epoch", "10",
            "--model.net.head_width", str(2 * args.width)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--init", default="", help="a .safetensors file, or a run")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument(
        "--small", action="store_true", help="20 steps of a tiny network on digits, as a functional check"
    )
    args = parser.parse_args()
    if args.seconds <= ENDING and not args.small:
        parser.error(f"--seconds: wanted more than {ENDING}, got {args.seconds:g}")
    begun = time.perf_counter()
    budget = args.seconds - ENDING
    few = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "20"]
    length = few if args.small else ["--budget", f"{budget:.0f}s"]
    more = ["--init", args.init] if args.init else []
    run = train([*options(args), *more, *length, "--out", str(args.out / "runs")], started=begun)
    (args.out / "weights").mkdir(parents=True, exist_ok=True)
    made = export(run.folder, args.out / "weights" / "cifar10.safetensors", precision="fp16")
    rate = next(c for c in run.trainer.callbacks if isinstance(c, Rate))
    losses = {k: float(v) for k, v in run.trainer.callback_metrics.items()}
    found = {
        "init": args.init, "budget_s": None if args.small else budget, "steps": run.trainer.global_step,
        "images": rate.images, "images_per_s": rate.per_second, "losses": losses, "bytes": made.size,
    }  # fmt: skip
    print(f"{machine()}; {found}\nwritten: {save('cifar', found)}")


if __name__ == "__main__":
    main()
