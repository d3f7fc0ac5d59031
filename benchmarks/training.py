"""Training in this checkout against another one: images/s of both in alternating blocks of steps.

    python -m benchmarks.training --against FOLDER [--config configs/digits.yaml ...] [--precision 32-true bf16-mixed]
        [--block 4] [--pairs 12] [--clock cpu] [options of `diffusion fit`]

Both sides train the configuration, each in a process of its own; one waits while the other takes its steps. A ratio
above 1 is in favour of this checkout. With `--clock cpu` the time is that of the processors, which other load on the
machine changes little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl

HERE = Path(__file__).resolve().parent.parent
WORKER = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='worker')['work'](sys.argv[2:])"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Blocks(pl.Callback):
    """Takes a block of steps for each line of the standard input, and answers with the block's seconds."""

    def __init__(self, block: int, clock: str, answers) -> None:
        self.block, self.clock, self.answers = block, CLOCKS[clock], answers

    def on_train_start(self, trainer, model):
        self.turn(trainer)

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step % self.block == 0:
            print(self.clock() - self.since, file=self.answers, flush=True)
            self.turn(trainer)

    def turn(self, trainer) -> None:
        """Wait for the next line; its end stops the training."""
        trainer.should_stop = not sys.stdin.readline()
        self.since = self.clock()


def work(arguments: list[str]) -> None:
    """One side: a `diffusion fit` of its checkout that only trains."""
    from diffusion.training.build import quiet
    from diffusion.training.run import assemble, begin

    block, clock, *options = arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints is not an answer
    quiet()
    run = begin(assemble(options))
    run.trainer.callbacks.append(Blocks(int(block), clock, answers))
    run.trainer.fit(run.model, run.data)


class Side:
    """A checkout's process.

    Raises:
        SystemExit: the process ended; its messages are printed.
    """

    def __init__(self, checkout: Path, arguments: list[str], log: Path) -> None:
        self.log = log
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, __file__, *arguments], cwd=checkout, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip

    def seconds(self) -> float:
        """Seconds of one block of steps."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise SystemExit(f"a side ended:\n{self.log.read_text()[-2000:]}")
        return float(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(config: str, precision: str, args: argparse.Namespace, more: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of the blocks of this checkout and of the other; two rounds warm up and are dropped."""
    options = [
        "-c", str(Path(config).resolve()), "--trainer.precision", precision, "--trainer.max_epochs", "-1",
        "--trainer.max_steps", str(args.block * (args.pairs + 3)), "--trainer.limit_val_batches", "0",
        "--trainer.enable_progress_bar", "false", "--samples.every_n_epochs", "0", "--samples.n", "1", "--gif.n", "1",
        *more,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        common = [str(args.block), args.clock, *options, "--out"]
        sides = [
            Side(checkout, [*common, f"{folder}/{k}"], Path(folder, f"{k}.log"))
            for k, checkout in enumerate((HERE, Path(args.against).resolve()))
        ]
        try:
            found: list[list[float]] = [[], []]
            for k in range(args.pairs + 2):
                for which in (0, 1) if k % 2 else (1, 0):
                    found[which].append(sides[which].seconds())
        finally:
            for side in sides:
                side.close()
    return found[0][2:], found[1][2:]


def main() -> None:
    from benchmarks.common import machine, ratio, said, save

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="the folder of the other checkout")
    parser.add_argument("--config", nargs="+", default=["configs/digits.yaml"])
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--block", type=int, default=4, help="steps (default 4)")
    parser.add_argument("--pairs", type=int, default=12, help="blocks of each side (default 12)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    args, more = parser.parse_known_args()
    rows = []
    print(f"{machine()}; {args.pairs} pairs of {args.block} steps; {args.clock} time")
    for config in args.config:
        for precision in args.precision:
            ours, theirs = measure(config, precision, args, more)
            speed, step = ratio(theirs, ours), sorted(ours)[len(ours) // 2] / args.block
            rows.append({"config": config, "precision": precision, "speed": speed, "step_s": step})
            print(
                f"{Path(config).stem}, {precision}: {said(speed)} of its images/s; {1e3 * step:.1f} ms a step",
                flush=True,
            )
    print(f"written: {save('training', {'clock': args.clock, 'rows': rows})}")


if __name__ == "__main__":
    main()
