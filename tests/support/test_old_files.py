"""Files of version 0.1, whose classes had other import paths, still load, resume and sample as before.

`tests/files/version_0_1` was written by its `diffusion fit` and `diffusion sample --image test --n 4 --seed 3`. Its
noise came from a generator per image, see `noise_of_version_0_1`.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from diffusion.cli import main
from diffusion.noise.draws import ImageDraws, seed_of
from diffusion.support import runs

OLD = Path(__file__).resolve().parents[1] / "files" / "version_0_1"


def noise_of_version_0_1(monkeypatch):
    """Replace the noise of images by that of version 0.1: one torch generator per image, of (seed, number)."""

    def begin(self, seed, indices):
        self.generators = [torch.Generator().manual_seed(seed_of(seed, i)) for i in indices]

    def draw(self, x):
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in self.generators])

    monkeypatch.setattr(ImageDraws, "__init__", begin)
    monkeypatch.setattr(ImageDraws, "__call__", draw)


def test_an_old_checkpoint_gives_the_same_samples_of_the_same_noise(tmp_path, monkeypatch):
    noise_of_version_0_1(monkeypatch)
    out = tmp_path / "x.npz"
    words = ["--image", "test", "--n", "4", "--seed", "3", "--device", "cpu", "--out", str(out)]
    assert main(["sample", str(OLD), *words]) == 0
    with np.load(out) as new, np.load(OLD / "samples.npz") as old:
        assert np.abs(new["images"].astype(int) - old["images"]).max() <= 1
        assert (new["labels"] == old["labels"]).all()


def test_an_old_run_resumes_with_its_own_configuration(tmp_path):
    run = tmp_path / "old" / "version_0"
    shutil.copytree(OLD, run)
    words = ["--trainer.max_epochs", "2", "--samples.n", "1", "--gif.n", "1", "--gif.frames", "2"]
    config = str(run / "config.yaml")
    assert main(["fit", "-c", config, "--resume", str(run), "--out", str(tmp_path), *words]) == 0
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 20
