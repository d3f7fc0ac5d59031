"""Every configuration is short, parses, and runs one step."""

from pathlib import Path

import pytest
import torch

from diffusion.cli import main

CONFIGS = sorted(Path("configs").glob("*.yaml")) or sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))

NARROW = {  # a fraction of the width, for speed; tests/commands/test_describe.py has the full network of cifar10.yaml
    "cifar10": ["--model.net.width", "32", "--model.net.head_width", "64"],
    "cifar10_best": ["--model.net.width", "32", "--model.net.head_width", "64"],
    "unet64": ["--model.net.width", "24", "--model.net.head_width", "24"],
    "superres64": ["--model.net.width", "24", "--model.net.head_width", "24"],
    "jit64": ["--model.net.width", "96", "--model.net.depth", "2"],
    "latent64": ["--model.net.width", "96", "--model.net.depth", "2"],
    "autoencoder64": ["--model.net.width", "16"],
}
LAYERED = {  # over the digits, with their model as the teacher
    f"{name}_walks": ["-c", "configs/digits.yaml", "-c", f"configs/{name}_walks.yaml", "--data", "Digits",
                      "--init", "zoo:digits"] for name in ("digits", "fashion")
}  # fmt: skip


def test_all_configurations_are_found():
    assert {"default", "digits", "mnist", "fashion", "cifar10", "sprites"} <= {p.stem for p in CONFIGS}


def of_digits(path):
    """The digits' configurations; those of other data are slow tests."""
    return path if path.stem.startswith("digits") else pytest.param(path, marks=pytest.mark.slow)


@pytest.mark.parametrize("path", [of_digits(p) for p in CONFIGS], ids=lambda p: p.stem)
def test_every_configuration_takes_one_training_step(path, tmp_path, monkeypatch):
    """Uses random images of the data set's shape and number of classes, so that no files are needed."""
    from diffusion.data import ImageData

    def load(self, split):
        n, kinds = 6, len(self.class_names)
        if self.tokens:
            return torch.randint(0, 256, (n, *self.shape), dtype=torch.uint8), self.vocabulary.encode(["a cat"] * n)
        y = torch.arange(n) % kinds
        images = torch.randint(0, 256, (n, *self.whole), dtype=torch.uint8)
        return images, torch.eye(kinds)[y] if self.context else y

    for kind in ImageData.__subclasses__() + [k for c in ImageData.__subclasses__() for k in c.__subclasses__()]:
        monkeypatch.setattr(kind, "load", load)
        monkeypatch.setattr(kind, "prepare_data", lambda self: None)
    if path.stem != "default":
        assert len(path.read_text().splitlines()) <= 20
    options = ["--out", str(tmp_path), "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]
    options += NARROW.get(path.stem, []) + LAYERED.get(path.stem, [])
    assert main(["fit", "-c", str(path), *options, "--data.batch_size", "2"]) == 0
