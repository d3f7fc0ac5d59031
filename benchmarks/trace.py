"""How many files a reader of the code passes: the project's functions in the order of their first calls.

    python -m benchmarks.trace sample RUN [options of `diffusion sample`]
    python -m benchmarks.trace train [options of `diffusion fit`]

`sample` is a whole `diffusion sample RUN --label 3 --scale 2`, run a second time, so that imports are not counted.
`train` is one training batch, step 12 of `diffusion fit -c configs/digits.yaml`, from the loader's next batch to the
last callback. Counted are the functions, the files that they are in, and the returns: how often the next new function
is in a file that was already left. A generator, comprehension or lambda is part of the function that it stands in.
--show lists the functions.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl

from diffusion.cli import run
from diffusion.support import paths

PACKAGE = f"{paths.PACKAGE}/"
INSIDE = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>")
STEP = 12


class Trace:
    """Records the project's functions in the order of their first calls between `start` and `stop`."""

    def __init__(self) -> None:
        self.order: dict[tuple[str, int], tuple[str, str]] = {}  # (file, line): (file below the package, name)
        self.calls = 0

    def start(self) -> None:
        sys.setprofile(self._call)

    def stop(self) -> None:
        sys.setprofile(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        name = getattr(code, "co_qualname", code.co_name)
        if name == "<module>" or name.endswith(INSIDE):
            return
        self.calls += 1
        self.order.setdefault((code.co_filename, code.co_firstlineno), (code.co_filename.removeprefix(PACKAGE), name))

    @property
    def files(self) -> set[str]:
        """The files of the functions."""
        return {file for file, _ in self.order.values()}

    @property
    def returns(self) -> int:
        """How often the next new function is in a file that was left before."""
        left, here, count = set(), "", 0
        for file, _ in self.order.values():
            if file != here:
                count += file in left
                left.add(here)
                here = file
        return count

    def __str__(self) -> str:
        return (
            f"{len(self.order)} functions in {len(self.files)} files, {self.returns} returns into a file already left; "
            f"{self.calls} calls"
        )


class OneBatch(pl.Callback):
    """Traces one training batch: everything between the last callback of one batch and that of the next."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        self.trace.stop()
        if trainer.global_step == STEP:
            self.trace.start()


def train(options: list[str]) -> Trace:
    """One batch of training the digits."""
    from diffusion.training.build import quiet
    from diffusion.training.run import assemble, begin

    quiet()
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        argv = ["-c", str(paths.CONFIGS / "digits.yaml"), "--trainer.max_steps", str(STEP + 2), "--gif.n", "1"]
        argv += ["--samples.n", "1", "--model.sampler.steps", "2", "--diagnostics.images", "2"]
        run = begin(assemble([*argv, "--out", folder, *options]))
        run.trainer.callbacks.append(OneBatch(trace))  # the very last
        run.trainer.fit(run.model, run.data)
    return trace


def sample(options: list[str]) -> Trace:
    """A whole `diffusion sample`."""
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        argv = ["sample", options[0], "--label", "3", "--scale", "2", "--n", "4", "--steps", "2", *options[1:]]
        argv += ["--out", str(Path(folder) / "a.png")]
        run(argv)  # imports, which define classes, are not traced
        trace.start()
        try:
            code = run(argv)
        finally:
            trace.stop()
    if code:
        raise SystemExit(code)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["sample", "train"])
    parser.add_argument("--show", action="store_true", help="list the functions")
    args, options = parser.parse_known_args()
    if args.what == "sample" and not options:
        parser.error("sample needs a RUN")
    trace = {"sample": sample, "train": train}[args.what](options)
    if args.show:
        for file, name in trace.order.values():
            print(f"  {file:40}{name}")
    print(trace)


if __name__ == "__main__":
    main()
