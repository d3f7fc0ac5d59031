"""Startup times: import, --help, and from `diffusion fit` to the first step.

    python -m benchmarks.startup [--rounds 5] [--clock cpu] [--only "import torch" "sample a picture"]

Each is run in its own process; `import torch, pytorch_lightning` alone is the lower bound, of sampling `import torch`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import diffusion
from benchmarks.common import machine, ratio, said, save
from diffusion import Denoiser, Pipeline
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine

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
PICTURE = ["-m", "diffusion", "sample", "{}/model.safetensors", "--n", "1", "--steps", "2", "--out", "{}/picture.png"]
SIDES = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "sample a picture": PICTURE,
    "import torch and Lightning": ["-c", "import torch, pytorch_lightning"],
    "import diffusion.training.systems": ["-c", "import diffusion.training.systems"],
    "diffusion --help": ["-m", "diffusion", "--help"],
    "diffusion sample --help": ["-m", "diffusion", "sample", "--help"],
    "diffusion fit --help": ["-m", "diffusion", "fit", "--help"],
    "fit to its first step": ["-c", FIRST],
}


def spent(clock: str) -> float:
    """Seconds so far: of the wall clock, or of the processors in ended processes that this one started."""
    if clock == "wall":
        return time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--only", nargs="+", choices=list(SIDES), default=list(SIDES))
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in SIDES if name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        diffusion.export(
            Pipeline(Denoiser(AttentionUNet(1), Cosine()), shape=(1, 32, 32)), f"{folder}/model.safetensors"
        )
        for k in range(args.rounds):
            for name in times:
                words = [word.replace("{}", folder) for word in SIDES[name]]
                words += [f"{folder}/{k}"] if words[-1] == FIRST else []
                begun = spent(args.clock)
                subprocess.run(
                    [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=os.environ,
                )  # fmt: skip
                times[name].append(spent(args.clock) - begun)
    print(f"{machine()}; {args.clock} time")
    rows = []
    for name, mine in times.items():
        least = times.get("import torch" if name == "sample a picture" else "import torch and Lightning", mine)
        rows.append({"what": name, "seconds": statistics.median(mine), "of_the_imports": ratio(mine, least)})
        print(f"{name:34} {statistics.median(mine):6.2f} s   {said(ratio(mine, least), 2)} of the bare imports")
    name = "startup" if args.clock == "wall" else "startup-processor"
    print(f"written: {save(name, {'clock': args.clock, 'rows': rows})}")


if __name__ == "__main__":
    main()
