"""Host time of a training step: each hook of `diffusion fit`, and Lightning's overhead.

    python -m benchmarks.hooks [--config configs/mnist.yaml] [--batch 16] [--steps 30] [--tiny] [--precision bf16-mixed]

--tiny gives the network 4 channels, so that host work dominates: the time a fast GPU would wait for. On a GPU a hook's
time is that of launching its work, not of the work itself. Separately, a row of `Watch`:
its time, and the slowest one's share of the time between two rows.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict

import pytorch_lightning as pl

from benchmarks.common import machine, save
from benchmarks.overhead import options
from diffusion.training.build import quiet
from diffusion.training.callbacks import Watch
from diffusion.training.run import assemble, begin

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
PARTS = ("training_step", "backward", "optimizer_step")  # the last includes the others
TINY = ["--model.net.widths", "[4,4,4]", "--model.net.heads", "1", "--model.net.attention", "1"]


class Steps(pl.Callback):
    """Records the start of each step; called before all other callbacks."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_train_batch_start(self, *args) -> None:
        self.began.append(time.perf_counter())


def timed(spent: dict[str, list[float]], thing: object, hook: str, name: str) -> None:
    """Replace a method by one that records its seconds."""
    inner = getattr(thing, hook)

    def outer(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[name].append(time.perf_counter() - begun)

    setattr(thing, hook, outer)


def watching(trainer: pl.Trainer, rows: int = 20) -> dict[str, float]:
    """Milliseconds of a row of `Watch`, and its share of the time between two rows.

    Args:
        rows: that are written, once training has ended.
    """
    (watch,) = (c for c in trainer.callbacks if isinstance(c, Watch))
    spent = []
    for _ in range(rows):
        begun = time.perf_counter()
        watch.write(trainer)
        spent.append(time.perf_counter() - begun)
    trainer.logger.finalize("success")  # the rows opened its file again, and a thread writes to it
    return {"row_ms": 1e3 * statistics.median(spent), "every_s": watch.every, "of_time": max(spent) / watch.every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/mnist.yaml")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    quiet()
    spent: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        more = TINY if args.tiny else []
        run = begin(assemble(options(args.config, args.batch, folder, args.steps + 5, args.precision, more)))
        trainer, steps = run.trainer, Steps()
        for callback in trainer.callbacks:
            for hook in HOOKS:
                if getattr(type(callback), hook) is not getattr(pl.Callback, hook):
                    timed(spent, callback, hook, f"{type(callback).__name__}.{hook}")
        for part in PARTS:
            timed(spent, run.model, part, part)
        trainer.callbacks.insert(0, steps)
        trainer.fit(run.model, run.data)
        watch = watching(trainer)
    whole = [1e3 * (b - a) for a, b in zip(steps.began[5:], steps.began[6:], strict=False)]
    rows = [{"part": "a step", "ms": statistics.median(whole)}]
    rows += [{"part": k, "ms": 1e3 * statistics.median(v[5:])} for k, v in spent.items()]
    rows[1:] = sorted(rows[1:], key=lambda row: -row["ms"])
    print(f"{machine()}; {args.config}{', 4 channels' * args.tiny}, batch {args.batch}, {args.precision}; medians")
    for row in rows:
        print(f"{row['ms']:9.3f} ms  {row['part']}")
    print(f"{watch['row_ms']:9.3f} ms  a row of Watch, every {watch['every_s']:g} s: at most {watch['of_time']:.3%}")
    kept = {"config": args.config, "batch": args.batch, "precision": args.precision, "tiny": args.tiny}
    kept |= {"rows": rows, "watch": watch}
    print(f"written: {save('hooks-tiny' if args.tiny else 'hooks', kept)}")


if __name__ == "__main__":
    main()
