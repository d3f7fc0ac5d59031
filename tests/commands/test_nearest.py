"""`diffusion sample --nearest`: sheets and files, every kind of model, and refusals in one line."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.generation.pipeline import Pipeline

from .conftest import TINY
from .test_bad_input import refused


def test_a_file_has_the_nearest_images_with_their_distances(tiny, tmp_path, capsys):
    out = tmp_path / "near.npz"
    assert main(["sample", str(tiny), "--n", "7", "--nearest", "3", "--seed", "4", "--out", str(out)]) == 0
    kept = np.load(out)
    train = Digits(limit=320).arrays("train")[0].numpy()[:, 0].astype(float)
    assert kept["images"].shape == (7, 8, 8, 1) and kept["nearest"].shape == (7, 3, 8, 8, 1)
    apart = np.linalg.norm((kept["images"][:, None, ..., 0] - train) * (2 / 255), axis=(2, 3))  # x_0 in [-1, 1]
    order = apart.argsort(1)[:, :3]
    assert np.array_equal(kept["index"], order)
    assert np.allclose(kept["distances"], np.sort(apart, 1)[:, :3], atol=1e-5)
    assert np.array_equal(kept["nearest"][..., 0], train[order])
    assert f"median {np.median(kept['distances'][:, 0]):.3g}" in capsys.readouterr().out


def test_a_picture_and_the_api_have_the_same_images(tiny, tmp_path):
    out = tmp_path / "near.png"
    assert main(["sample", str(tiny), "--nearest", "2", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    x = diffusion.sample(tiny, nearest=2)
    assert x.shape == (10, 3, 1, 8, 8) and torch.allclose(x[:, 0], diffusion.sample(tiny, 10), atol=1e-6)
    scale = 7  # about 640 pixels wide
    assert sheet.shape == ((10 + 1 + 19) * scale, 91 * scale)
    for row, top in ((0, 1), (1, 12), (2, 21)):
        part = sheet[top * scale : (top + 8) * scale : scale, scale + 27 * scale : scale + 35 * scale : scale]
        assert np.abs(part - ((x[3, row, 0] + 1) * 127.5).numpy()).max() <= 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one epoch: of latents, of images without labels, of sprites with a context, and with a hint."""
    out = tmp_path_factory.mktemp("runs")
    short = ["--trainer.max_epochs", "1", "--data.limit", "128", "--out", str(out)]
    auto = ["-c", "configs/digits_autoencoder.yaml", "--trainer.accelerator", "cpu", "--model.net.width", "8"]
    assert main(["fit", *auto, *short]) == 0
    codec = ["--model.codec", "Frozen", "--model.codec.autoencoder", str(out / "digits_autoencoder" / "version_0")]
    kinds = {
        "latent": codec,
        "unlabelled": ["--data.labels", "false"],
        "hint": ["--model.hint", "LowResolution"],
        "context": ["--data", "Sprites", "--data.drawn", "true", "--data.limit", "128"],
    }
    for name, words in kinds.items():
        assert main(["fit", *TINY, *short, "--experiment", name, *words]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name, words", [("latent", []), ("unlabelled", []), ("context", ["--context", "hero,food"]),
                                         ("hint", ["--image", "test"])])  # fmt: skip
def test_every_kind_of_model_has_nearest_images(name, words, runs, tmp_path):
    """Distances of the pixels that are written."""
    out = tmp_path / "near.npz"
    assert main(["sample", str(runs / name), "--n", "4", "--nearest", "2", "--out", str(out), *words]) == 0
    kept = np.load(out)
    apart = (kept["images"][:, None].astype(float) - kept["nearest"]) * (2 / 255)
    assert np.allclose(np.linalg.norm(apart.reshape(4, 2, -1), axis=2), kept["distances"], atol=1e-5)
    assert (np.diff(kept["distances"], axis=1) >= 0).all()
    assert (
        main(["sample", str(runs / name), "--n", "4", "--nearest", "2", "--out", str(tmp_path / "a.png"), *words]) == 0
    )


def test_nearest_refuses(tiny, tmp_path, capsys):
    sample = ["sample", str(tiny), "--n", "2", "--out", str(tmp_path / "a.png")]
    refused(capsys, [*sample, "--nearest", "-1"], "at least 1 training image per picture, got -1")
    refused(capsys, [*sample, "--nearest", "321"], "wanted 321", "there are 320")
    refused(capsys, [*sample, "--nearest", "2", "--data.reduce", "2"], "1x4x4", "the model's 1x8x8")
    refused(capsys, [*sample[:-1], str(tmp_path / "a.npy"), "--nearest", "2"], "wanted a .png or a .npz")
    copy = tmp_path / "alone" / "last.ckpt"
    copy.parent.mkdir()
    shutil.copy(tiny / "checkpoints" / "last.ckpt", copy)
    refused(capsys, ["sample", str(copy), *sample[2:], "--nearest", "2"], "config.yaml", "is missing")
    config = (tiny / "config.yaml").read_text().replace("diffusion.data.Digits", "diffusion.data.MNIST")
    (copy.parent / "config.yaml").write_text(config)
    nowhere = ["--data.root", str(tmp_path / "nowhere")]
    refused(capsys, ["sample", str(copy), *sample[2:], "--nearest", "2", *nowhere], "MNIST: no files under")
    with pytest.raises(ValueError, match="an open pipeline does not know its data"):
        diffusion.sample(Pipeline.load(tiny), 2, nearest=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone"]
