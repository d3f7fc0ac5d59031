"""Float fields in thousands: samples with the mean and the spread of five bands; fine fields from coarse ones."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import diffusion

pytestmark = pytest.mark.slow
H, W = 48, 80
FAST = {
    "trainer.accelerator": "cpu", "model.net": "ResidualMLP", "model.net.size": [H, W], "model.net.width": 128,
    "model.net.depth": 3, "model.schedule": "Cosine", "model.target": "X0", "model.decay": "cosine", "model.lr": 1e-3,
    "model.warmup": 30, "model.objective.times": "Stratified", "model.sampler.steps": 50, "ema.decay": 0.98,
    "samples.n": 4, "samples.every_n_epochs": 0, "gif.n": 1, "gif.frames": 2, "diagnostics.images": 0,
    "trainer.check_val_every_n_epoch": 1000, "trainer.max_epochs": -1,
}  # fmt: skip


def waves(n, bands, most, seed=0):
    """Fields (n, bands, 48, 80) of standard deviation 1: waves of 1 .. most periods with random amplitudes."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:H, :W]
    field = np.zeros((n, bands, H, W))
    kinds = [(i, j) for i in (0, 1, 2) for j in range(1, most + 1)]
    for i, j in kinds:
        phase = 2 * np.pi * (i * y / H + j * x / W)
        a, b = random.randn(2, n, bands, 1, 1)
        field += (a * np.cos(phase) + b * np.sin(phase)) / len(kinds) ** 0.5
    return field


def grains(n, bands, seed):
    """Fields (n, bands, 24, 40) of standard deviation 1: white noise smoothed by a Gaussian of 1.5 pixels."""
    size = H // 2, W // 2
    y, x = (np.minimum(np.arange(side), side - np.arange(side)) for side in size)
    kernel = np.exp(-(y[:, None] ** 2 + x**2) / 2 / 1.5**2)
    kernel /= np.sqrt(np.square(kernel).sum())
    white = np.random.RandomState(seed).randn(n, bands, *size)
    return np.fft.irfft2(np.fft.rfft2(white) * np.fft.rfft2(kernel), size)


def test_samples_of_five_bands_have_the_mean_and_the_spread_of_the_data(tmp_path):
    mean, std = np.array([1500, -4000, 270, 90000, 12]), np.array([800, 1000, 25, 3000, 0.5])  # of the bands
    fields = 0.8 * grains(1000, 1, seed=0) + 0.6 * grains(1000, 5, seed=1)
    np.save(tmp_path / "i.npy", (fields * std[:, None, None] + mean[:, None, None]).astype(np.float32))
    files = {"data.images": "i.npy", "data.root": str(tmp_path), "data.batch_size": 16}
    net = {
        "model.net": "UNet", "model.net.width": 16, "model.net.mults": [1, 2, 2], "model.net.blocks": 1,
        "model.net.attention": [2], "model.target": "V", "model.lr": 2e-3, "ema.decay": 0.99, "model.sampler.steps": 30,
    }  # fmt: skip
    rest = {name: value for name, value in FAST.items() if not name.startswith("model.net")}
    run = diffusion.fit(data="Arrays", max_steps=200, out=tmp_path, settings=rest | net | files)
    made = diffusion.sample(run, 48, device="cpu").numpy()
    assert made.dtype == np.float32 and made.shape == (48, 5, H // 2, W // 2)
    assert np.abs((made.mean((0, 2, 3)) - mean) / std).max() < 0.06  # measured: 0.03
    assert np.abs(made.std((0, 2, 3)) / std - 1).max() < 0.08  # measured: 0.05


def test_fine_fields_from_coarse_ones_are_nearer_than_interpolation(tmp_path):
    """12x20 means of blocks -> 48x80: the model knows which waves there are, bilinear interpolation flattens them."""
    fine = waves(3000, 1, 8)
    coarse = fine.reshape(3000, 1, 12, 4, 20, 4).mean((3, 5))
    np.save(tmp_path / "i.npy", (fine * 800 + 1500).astype(np.float32))
    np.save(tmp_path / "low.npy", (coarse * 800 + 1500).astype(np.float32))
    files = {"data.images": "i.npy", "data.condition": "low.npy", "data.root": str(tmp_path), "data.resize": True}
    run = diffusion.fit(data="Arrays", max_steps=400, out=tmp_path, settings=files | {"data.batch_size": 64} | FAST)
    unseen = waves(200, 1, 8, seed=5) * 800 + 1500
    low = unseen.reshape(200, 1, 12, 4, 20, 4).mean((3, 5)).astype(np.float32)
    np.save(tmp_path / "new.npy", low)
    made = diffusion.sample(run, 200, image=str(tmp_path / "new.npy"), device="cpu").numpy()
    between = F.interpolate(torch.from_numpy(low), (H, W), mode="bilinear").numpy()
    errors = [float(np.sqrt(np.square(v - unseen).mean())) for v in (made, between)]
    assert errors[0] < 0.3 * errors[1], errors  # measured: 9 of 292, of fields of standard deviation 800
