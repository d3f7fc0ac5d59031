"""The cost of diagnostics: one training run on the digits, alternating blocks of steps with and without them.

    python benchmarks/diagnostics.py [--pairs 40] [--widths 32 64 64]

A block is the number of steps between two logs, so that each block with diagnostics has one. Neighbouring blocks are
compared, in both orders equally often, and the median ratio is reported with its standard error, so that other load on
the machine affects both. CPU time is compared too, which other processes hardly affect.
"""

import argparse
import platform
import statistics
import tempfile
import time

import pytorch_lightning as pl
import torch

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.denoiser.targets import V
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.training.callbacks import EMA, Diagnostics
from diffusion.training.callbacks.diagnostics import SHARE

BLOCK = 20  # steps, the default of trainer.log_every_n_steps


class Alternate(pl.Callback):
    """Forwards a step's hooks to the diagnostics in every second block, and times the blocks."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics, self.on, self.inside = diagnostics, False, 0.0
        self.blocks: dict[bool, list[tuple[float, float]]] = {False: [], True: []}  # wall and CPU seconds

    def on_train_start(self, *args):
        started = time.perf_counter()
        self.diagnostics.on_train_start(*args)
        self.since = time.perf_counter(), time.process_time()
        self.start = self.since[0] - started

    def on_before_optimizer_step(self, *args):
        self._pass("on_before_optimizer_step", *args)

    def on_train_batch_end(self, trainer, *args):
        self._pass("on_train_batch_end", trainer, *args)
        if trainer.global_step % BLOCK == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter(), time.process_time()
            self.blocks[self.on].append((now[0] - self.since[0], now[1] - self.since[1]))
            self.since, self.on = now, trainer.global_step // BLOCK % 4 in (1, 2)  # off, on, on, off

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
        x0 = torch.randn(64, *model.pipeline.shape, device=model.device)
        single = typical(lambda: (x0 - x0).square().flatten(1).mean(1))
        before = time.perf_counter()
        diagnostics.probe(trainer, model)
        probe = time.perf_counter() - before
        trainer.logger.experiment.close()
    without, with_ = (torch.tensor(alternate.blocks[on][1:]) for on in (False, True))  # the first pair warms up
    step = float(without[:, 0].median()) / BLOCK
    hooks = alternate.inside / (BLOCK * len(alternate.blocks[True]))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"step {step * 1e3:.2f} ms, batch 64, {sum(p.numel() for p in model.parameters()):,} parameters")
    for name, ratios in zip(("wall", "CPU"), (with_ / without).T, strict=True):
        low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        error = 0.93 * (high - low) / len(ratios) ** 0.5  # of a median of normal numbers
        print(f"with / without, {name} time: median {middle:.4f}, standard error {error:.4f}, {len(ratios)} pairs")
    print(f"inside the hooks {hooks * 1e6:.0f} us per step: {hooks / step:.2%}; the error of x_0 {single / step:.2%}")
    wait = SHARE * diagnostics.images  # images between two probes
    share = probe / (wait / 64 * step)
    print(f"start {alternate.start:.2f} s")
    print(f"a probe {probe:.2f} s, every {wait:,} images or more: {share:.2%} of their time")


def typical(work, n: int = 200) -> float:
    times = []
    for _ in range(n):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


if __name__ == "__main__":
    main()
