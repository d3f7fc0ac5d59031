"""The gallery: a run's report and pictures, what they are made of, and the page of several."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gallery
from diffusion import pictures
from diffusion.cli import main
from diffusion.data import Digits

from ..commands.conftest import TINY


def test_figure_over_its_floor():
    """500 samples at 4, 3 .. 5.5; at the floor's 100 images they are at 6, so the interval moves by 2."""
    figure = {"value": 4.0, "low": 3.0, "high": 5.5, "matched": 6.0, "floor": 2.0}
    assert gallery.over_floor(figure) == {"value": 3.0, "low": 2.5, "high": 3.75}


def test_row_is_filled_with_grey():
    images = np.arange(3 * 4).reshape(3, 2, 2, 1).astype(np.uint8)
    assert np.array_equal(gallery.row(images, 2), images[:2])
    assert np.array_equal(gallery.row(images, 5)[:3], images) and (gallery.row(images, 5)[3:] == 128).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a tiny run on digits, judged by a classifier of 5 epochs, and its folder."""
    out = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(out / "cache"))
        assert main(["fit", *TINY, "--out", str(out)]) == 0
        assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "5",
                     "--trainer.check_val_every_n_epoch", "5", "--trainer.accelerator", "cpu"]) == 0  # fmt: skip
        options = ["--n", "120", "--sampler", "UniPC", "--steps", "4", "--title", "Digits of 8x8"]
        patch.setattr("sys.argv", ["gallery", str(out / "digits"), *options])
        gallery.main()
    folder = out / "digits" / "version_0" / "gallery"
    return json.loads((folder / "gallery.json").read_text()), folder


@pytest.mark.slow
def test_report_has_the_figures_of_evaluate(made):
    report, folder = made
    kept = json.loads(next((folder.parent / "evaluation").glob("*.json")).read_text())
    figures = {f["metric"]: f["value"] for f in kept["figures"]}
    assert {k: f["value"] for k, f in report["figures"].items()} == figures
    assert {"frechet", "consistency", "precision", "recall", "nearest_pixels", "background"} <= set(figures)
    assert report["figures"]["frechet"]["m"] == 120 and report["sampling"]["steps"] == 4
    wanted = figures["frechet"] / report["figures"]["frechet"]["floor"]
    assert report["ratio"]["value"] == pytest.approx(wanted)
    assert report["ratio"]["low"] < wanted < report["ratio"]["high"]
    training = report["training"]
    assert training["steps"] == 10 and training["batch_size"] == 64 and training["parameters"] > 10_000
    assert training["seconds"] == pytest.approx(640 / training["images_per_s"], abs=1)
    text = (folder / "gallery.md").read_text()
    assert text.startswith("## Digits of 8x8\n") and "`diffusion fit -c configs/digits.yaml`: 10 steps of 64" in text
    assert f"over the floor, 120 images each | **{report['ratio']['value']:.4g}**" in text


@pytest.mark.slow
def test_pictures_show_the_evaluated_samples_and_test_images(made):
    report, folder = made
    with np.load(next((folder.parent / "evaluation").glob("*.npz"))) as kept:
        images, labels = kept["images"], kept["labels"]
    test, y = (v.numpy() for v in Digits().arrays("test"))
    rows = {k: images[labels == k][: gallery.COLUMNS] for k in range(10)}
    both = [v for k in range(10) for v in (rows[k], test[y == k][: gallery.COLUMNS].transpose(0, 2, 3, 1))]
    wanted = {"grid.png": pictures.grid(np.concatenate([gallery.row(v) for v in rows.values()]), gallery.COLUMNS)}
    many = np.concatenate([gallery.row(v) for v in both])
    wanted["beside.png"] = pictures.grid(many, gallery.COLUMNS, width=gallery.WIDE)
    for name, image in wanted.items():
        assert np.array_equal(np.asarray(Image.open(folder / name)), image[..., 0]), name
    scale = 7
    top = np.asarray(Image.open(folder / "nearest.png"))[scale : 9 * scale : scale]
    first = np.concatenate([np.pad(rows[k][0, ..., 0], ((0, 0), (1, 0)), constant_values=128) for k in range(10)], 1)
    assert np.array_equal(top[:, : 90 * scale : scale], first)
    film = Image.open(folder / "film.gif")
    assert film.n_frames == 5 and set(report["files"]) == {*wanted, "nearest.png", "film.gif"}


@pytest.mark.slow
def test_page_joins_reports_with_their_pictures(made, tmp_path, monkeypatch):
    report, folder = made
    page = tmp_path / "docs" / "gallery.md"
    monkeypatch.setattr("sys.argv", ["gallery", "--collect", str(folder), str(folder), "--page", str(page)])
    gallery.main()
    text = page.read_text()
    assert text.startswith("# Gallery\n") and text.count("## Digits of 8x8\n") == 2
    named = {Path(part.split(")")[0]) for part in text.split("](")[1:] if part.startswith("images/")}
    assert named == {Path("images", f"gallery_digits_{name}") for name in report["files"]}
    assert all((page.parent / name).read_bytes() for name in named)
