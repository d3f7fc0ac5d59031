"""What the diagnostics cost: one training on the digits, with them and without in turn, a block of steps each.

    python benchmarks/diagnostics.py [--pairs 40] [--widths 32 64 64]

A block is as many steps as lie between two logs, so that each block with diagnostics has one. Neighbouring blocks are
compared, and the median of the ratios is reported: what else the machine does passes over both.
"""

import argparse
import platform
import statistics
import tempfile
import time

import pytorch_lightning as pl
import torch

from diffusion import Diffusion
from diffusion.callbacks import EMA, Diagnostics
from diffusion.callbacks.diagnostics import SHARE
from diffusion.data import Digits
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.targets import V

BLOCK = 20  # steps, the default of trainer.log_every_n_steps


class Alternate(pl.Callback):
    """Passes the hooks of a step on to the diagnostics in every second block, and times the blocks."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics, self.on, self.inside = diagnostics, False, 0.0
        self.seconds: dict[bool, list[float]] = {False: [], True: []}

    def on_train_start(self, *args):
        started = time.perf_counter()
        self.diagnostics.on_train_start(*args)
        self.since = time.perf_counter()
        self.start = self.since - started

    def on_before_optimizer_step(self, *args):
        self._pass("on_before_optimizer_step", *args)

    def on_train_batch_end(self, trainer, *args):
        self._pass("on_train_batch_end", trainer, *args)
        if trainer.global_step % BLOCK == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds[self.on].append(now - self.since)
            self.since, self.on = now, not self.on

    def _pass(self, hook, *args):
        if self.on:
            before = time.perf_counter()
            getattr(self.diagnostics, hook)(*args)
            self.inside += time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks (default 40)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 64], help="of the network (default: demo's)")
    parser.add_argument("--precision", default="32-true")
    args = parser.parse_args()

    torch.manual_seed(0)
    net = AttentionUNet(1, args.widths, heads=2, num_classes=10, ones=True)
    model, data = Diffusion(net, Cosine(), V(), shape=(1, 8, 8)), Digits(batch_size=64)
    diagnostics = Diagnostics()
    alternate = Alternate(diagnostics)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=-1, max_steps=2 * BLOCK * (args.pairs + 1), limit_val_batches=0, precision=args.precision,
            logger=pl.loggers.TensorBoardLogger(folder), callbacks=[EMA(), alternate], enable_checkpointing=False,
            log_every_n_steps=BLOCK, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(model, data)
        # The error without weight is computed in every block: timed alone.
        x0 = torch.randn(64, *model.shape, device=model.device)
        error = best_of(lambda: (x0 - x0).square().flatten(1).mean(1))
        before = time.perf_counter()
        diagnostics.probe(trainer, model)
        probe = time.perf_counter() - before
        trainer.logger.experiment.close()
    without, with_ = (v[1:] for v in (alternate.seconds[False], alternate.seconds[True]))  # the first pair warms up
    ratios = sorted(b / a for a, b in zip(without, with_, strict=True))
    step = statistics.median(without) / BLOCK
    low, middle, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
    hooks = alternate.inside / (BLOCK * len(alternate.seconds[True]))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"step {step * 1e3:.2f} ms, batch 64, {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"with / without: median {middle:.4f} (quartiles {low:.4f} .. {high:.4f}) of {len(ratios)} pairs")
    print(f"inside the hooks {hooks * 1e6:.0f} us a step: {hooks / step:.2%}; the error {error / step:.2%}")
    wait = SHARE * diagnostics.images  # images between two probes
    share = probe / (wait / 64 * step)
    print(f"start {alternate.start:.2f} s")
    print(f"a probe {probe:.2f} s, every {wait:,} images or more: {share:.2%} of their time")


def best_of(work, n: int = 200) -> float:
    times = []
    for _ in range(n):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


if __name__ == "__main__":
    main()
