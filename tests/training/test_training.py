"""Training on real files. Slow. The bounds on the losses are about 1.3 times the measured values."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion.cli import main

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

SMALL = [
    "--trainer.accelerator",
    "cpu",
    "--model.net.widths",
    "[16,32,32]",
    "--model.lr",
    "2e-3",
    "--model.warmup",
    "20",
]
SHORT = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "300", "--trainer.limit_val_batches", "8"]
LITTLE = ["--samples.every_n_epochs", "0", "--samples.n", "10", "--gif.n", "4", "--model.sampler.steps", "10"]


@pytest.fixture(scope="module")
def data():
    for folder in (os.environ.get("DIFFUSION_DATA"), REPO.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return str(folder)
    pytest.skip("no real data: set $DIFFUSION_DATA to a folder with MNIST/, FashionMNIST/ and sprites/")


@pytest.mark.parametrize(
    "config, bound",
    [
        ("mnist", 0.08),
        ("sprites_course", 0.20),
        ("sprites", 0.30),
    ],
)
def test_the_loss_falls_on_real_images(config, bound, data, tmp_path):
    """300 steps of a small network on the real files; an untrained one has a loss above 1."""
    options = ["--data.root", data, "--out", str(tmp_path), "--data.batch_size", "32"]
    small = [{"--model.net.widths": "--model.net.width", "[16,32,32]": "16"}.get(a, a) for a in SMALL]
    options += small if "sprites" in config else SMALL
    assert main(["fit", "-c", str(REPO / "configs" / f"{config}.yaml"), *SHORT, *LITTLE, *options]) == 0
    (run,) = tmp_path.glob("*/version_0")
    losses = [e.value for e in EventAccumulator(str(run)).Reload().Scalars("train/loss")]
    end = sum(losses[-5:]) / 5
    print(f"{config}: train/loss {losses[0]:.3f} -> {end:.4f}")
    assert end < bound and end < losses[0] / 2, losses  # the first logged step is 20
    assert (run / "samples" / "denoising.gif").stat().st_size > 1000


def test_run_killed_in_mid_training_resumes(tmp_path):
    """SIGKILL, as from an out-of-memory killer or a spot market, then --resume auto."""
    argv = [
        sys.executable, "-m", "diffusion", "fit", "-c", "configs/digits.yaml", "--out", str(tmp_path),
        "--model.net.widths", "[8,16]", "--model.net.attention", "1", "--trainer.max_epochs", "20", *LITTLE,
        "--trainer.accelerator", "cpu", "--checkpoint.every_n_steps", "10", "--resume", "auto",
    ]  # fmt: skip
    folder = tmp_path / "digits" / "version_0" / "checkpoints"
    process = subprocess.Popen(argv, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(6000):
        if any(int(file.stem[4:]) >= 60 for file in folder.glob("step*.ckpt")):  # last.ckpt is then at 50 or later
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    at = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    result = subprocess.run(argv, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 50 <= at < 440 and f"resuming from {folder / 'last.ckpt'}: step {at}" in result.stdout, result.stdout
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 440
    steps = [e.step for e in EventAccumulator(str(folder.parent)).Reload().Scalars("train/loss")]
    assert steps == sorted(set(steps)) and len(steps) == 22


def test_demo_reports_its_measurements(tmp_path, capsys, monkeypatch):
    """A short demo writes its report and files, and its digits are far better than chance."""
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path))
    assert main(["demo", "--n", "200", "--trainer.max_epochs", "15", "--trainer.accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    for word in ("class agreement", "Frechet", "diversity", "copying", "images/s", "diffusion sample", "--resume"):
        assert word in said
    agreement = float(said.split("class agreement")[1].split("%")[0])
    assert agreement > 60, said
    samples = tmp_path / "digits" / "version_0" / "samples"
    assert (samples / "grid.png").exists() and (samples / "denoising.gif").exists()
