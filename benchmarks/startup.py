"""Startup times: import, --help, and from `diffusion fit` to the first step.

    python -m benchmarks.startup [--rounds 5]

Each is run in its own process; `import torch, pytorch_lightning` alone is the lower bound.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.common import machine, ratio, said, save

FIRST = """
import sys, time
import pytorch_lightning as pl
from diffusion.training.build import quiet
from diffusion.training.run import assemble, begin
class First(pl.Callback):
    def on_train_batch_end(self, *args):
        import os
        os._exit(0)
quiet()
run = begin(assemble(["-c", "configs/digits.yaml", "--out", sys.argv[1]]))
run.trainer.callbacks.append(First())
run.trainer.fit(run.model, run.data)
"""
SIDES = {
    "python": ["-c", "pass"],
    "import torch and Lightning": ["-c", "import torch, pytorch_lightning"],
    "import diffusion.training.systems": ["-c", "import diffusion.training.systems"],
    "diffusion --help": ["-m", "diffusion", "--help"],
    "diffusion sample --help": ["-m", "diffusion", "sample", "--help"],
    "diffusion fit --help": ["-m", "diffusion", "fit", "--help"],
    "fit to its first step": ["-c", FIRST],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(args.rounds):
        for name, words in SIDES.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                subprocess.run([sys.executable, *words, folder] if words[-1] == FIRST else [sys.executable, *words],
                               check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)  # fmt: skip # noqa: E501
                times[name].append(time.perf_counter() - begun)
    floor = times["import torch and Lightning"]
    print(machine())
    rows = []
    for name, spent in times.items():
        rows.append({"what": name, "seconds": statistics.median(spent), "of_the_imports": ratio(spent, floor)})
        print(f"{name:28} {statistics.median(spent):6.2f} s   {said(ratio(spent, floor), 2)} of the bare imports")
    print(f"written: {save('startup', {'rows': rows})}")


if __name__ == "__main__":
    main()
