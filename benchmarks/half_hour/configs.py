"""Every configuration takes three training steps; on a GPU the last one in torch's mode in which a wait is an error.

    python -m benchmarks.half_hour.configs [--only digits digits_flow]

The images are random, of each data set's shape. A step that waits is reported, and does not fail: the optimizer of the
classifiers and the probes of `LossAware` do (tests/test_fake_gpu.py lists them all).
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

from benchmarks.common import machine, save
from diffusion.data import ImageData
from diffusion.support.specs import PACKAGES, concrete, gather
from diffusion.training.build import quiet
from diffusion.training.callbacks import Evaluation, Gif, PostHoc, Reconstructions, Samples
from diffusion.training.run import assemble, begin

CONFIGS = Path(__file__).parents[2] / "configs"
LATER = (Samples, Gif, Evaluation, PostHoc, Reconstructions)  # what follows the last step
STEPS, BATCH = 3, 2
LAYERED = {  # over the digits, with their model as the teacher
    f"{name}_walks": ["-c", str(CONFIGS / "digits.yaml"), "-c", str(CONFIGS / f"{name}_walks.yaml"),
                      "--data", "Digits", "--init", "zoo:digits"] for name in ("digits", "fashion")
}  # fmt: skip


class Strict(pl.Callback):
    """Turns the error mode on before the last step; the first callback."""

    def on_train_batch_start(self, trainer, *args) -> None:
        if torch.cuda.is_available() and trainer.global_step == STEPS - 1:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")


class Loose(pl.Callback):
    """Turns it off again; the last callback."""

    def on_train_batch_end(self, *args) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


def load(self: ImageData, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images of the shape of a data set, and labels, contexts or texts."""
    n = 4 * BATCH
    images = torch.randint(0, 256, (n, *self.whole), dtype=torch.uint8)
    if self.tokens:
        return images, self.vocabulary.encode(["a cat"] * n)
    y = torch.arange(n) % len(self.class_names)
    return images, torch.eye(len(self.class_names))[y] if self.context else y


def one(config: Path, folder: str) -> dict[str, str]:
    """What became of the training of one configuration."""
    fixed = [
        "--data.batch_size", str(BATCH), "--out", folder, "--trainer.max_epochs", "-1", "--trainer.max_steps",
        str(STEPS), "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "100",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    try:
        run = begin(assemble(["-c", str(config), *LAYERED.get(config.stem, []), *fixed]))
        kept = [c for c in run.trainer.callbacks if not isinstance(c, LATER)]
        run.trainer.callbacks[:] = [Strict(), *kept, Loose()]
        run.trainer.fit(run.model, run.data)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        waits = "synchronizing CUDA operation" in str(error)
        return {"state": "waits" if waits else "failed", "error": said[-600:]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    steps = run.trainer.global_step
    return {"state": "done"} if steps == STEPS else {"state": "failed", "error": f"{steps} steps instead of {STEPS}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of configurations")
    args = parser.parse_args()
    quiet()
    warnings.simplefilter("ignore")  # advice about random images
    for package in PACKAGES:
        gather(f"diffusion.{package}")
    for kind in concrete(ImageData, "diffusion"):
        kind.load, kind.prepare_data = load, lambda self: None
    files = [p for p in sorted(CONFIGS.glob("*.yaml")) if not args.only or p.stem in args.only]
    print(f"{machine()}; {len(files)} configurations")
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            begun = time.perf_counter()
            found[file.stem] = one(file, folder)
            found[file.stem]["seconds"] = round(time.perf_counter() - begun, 1)
            print(f"{file.stem}: {found[file.stem]}", flush=True)
            save("configs", {"configs": found})  # now: the next one may hang
    if failed := [name for name, record in found.items() if record["state"] == "failed"]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
