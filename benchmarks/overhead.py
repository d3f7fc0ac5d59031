"""Training against a bare loop: one `diffusion fit` that alternates blocks of its own steps and of the bare loop's.

    python -m benchmarks.overhead [--config configs/mnist.yaml] [--batch 16] [--block 4] [--pairs 12] [--precision ...]

The bare loop has the same network and resident random tensors, and does forward, mean square, backward and fused AdamW
only: no data, noise, clipping or EMA. `diffusion fit` has its default callbacks, including EMA, diagnostics and logs. A
ratio of 1 is no overhead.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable

import pytorch_lightning as pl
import torch

from benchmarks.common import machine, ratio, said, save, wait
from diffusion.training.build import quiet
from diffusion.training.run import assemble, begin


class Bare:
    """The bare reference loop."""

    def __init__(self, model: pl.LightningModule, precision: str, batch: int) -> None:
        self.net = copy.deepcopy(model.denoiser.net).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 2e-4, fused=True)
        self.mixed, device = precision == "bf16-mixed", model.device
        self.x = torch.randn(batch, *model.pipeline.shape, device=device)
        self.clock = torch.randint(0, 1000, (batch,), device=device).float()
        classes = model.pipeline.num_classes
        self.y = torch.arange(batch, device=device) % max(1, classes) if classes else None
        self.goal = torch.randn_like(self.x)

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.optimizer.zero_grad()
            with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.mixed):
                out = self.net(self.x, self.clock, self.y)
            (out.float() - self.goal).square().mean().backward()
            self.optimizer.step()


class Turns(pl.Callback):
    """Runs a block of another loop after each block of the trainer's steps, and times both.

    Args:
        block: steps.
        make: the other loop's block(n steps), given the model.
    """

    def __init__(self, block: int, make: Callable[[pl.LightningModule], Callable[[int], None]]) -> None:
        self.block, self.make = block, make
        self.fit: list[float] = []
        self.other: list[float] = []

    def on_train_start(self, trainer, model):
        self.run = self.make(model)
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step % self.block:
            return
        wait()
        self.fit.append(time.perf_counter() - self.since)
        begun = time.perf_counter()
        self.run(self.block)
        wait()
        self.since = time.perf_counter()
        self.other.append(self.since - begun)


def options(config: str, batch: int, folder: str, steps: int, precision: str, more: list[str]) -> list[str]:
    """Arguments of a `diffusion fit` that only trains, on random images unless other data are given."""
    data = [] if "--data" in more else ["--data", "benchmarks.common.RandomGrey"]
    return [
        "-c", config, *data, "--data.batch_size", str(batch), "--out", folder,
        "--trainer.max_epochs", "-1", "--trainer.max_steps", str(steps), "--trainer.precision", precision,
        "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false", "--gif.n", "1",
        "--samples.every_n_epochs", "0", "--samples.n", "1", "--model.sampler.steps", "1", *more,
    ]  # fmt: skip


def measure(config: str, batch: int, block: int, pairs: int, precision: str, make, more: list[str]) -> Turns:
    """One training of pairs + 2 blocks; the first two warm up and are dropped."""
    turns = Turns(block, make)
    with tempfile.TemporaryDirectory() as folder:
        run = begin(assemble(options(config, batch, folder, block * (pairs + 2), precision, more)))
        run.trainer.callbacks.append(turns)  # last: after all other callbacks
        run.trainer.fit(run.model, run.data)
    turns.fit, turns.other = turns.fit[2:], turns.other[2:]
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/mnist.yaml")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--block", type=int, default=4, help="steps (default 4)")
    parser.add_argument("--pairs", type=int, default=12, help="blocks of each side (default 12)")
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    args, more = parser.parse_known_args()
    quiet()
    rows = []
    print(f"{machine()}; {args.config}; {args.pairs} pairs of {args.block} steps")
    for precision in args.precision:
        for batch in args.batch:
            make = lambda model, p=precision, b=batch: Bare(model, p, b).steps  # noqa: E731
            turns = measure(args.config, batch, args.block, args.pairs, precision, make, more)
            speed = ratio(turns.other, turns.fit)
            bare = sorted(turns.other)[len(turns.other) // 2] / args.block
            rows.append({"precision": precision, "batch": batch, "speed": speed, "bare_step_s": bare})
            print(
                f"{precision}, batch {batch}: {said(speed)} of the bare loop's images/s "
                f"({batch / bare:,.1f} images/s, step {1e3 * bare:.1f} ms)"
            )
    print(f"written: {save('overhead', {'config': args.config, 'rows': rows})}")


if __name__ == "__main__":
    main()
