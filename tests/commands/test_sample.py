"""`diffusion sample` and `film`: the files they write, and pictures that depend on the seed only."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from diffusion.cli import main
from diffusion.support.scaling import Scaling


def sample(run, out, *options):
    assert main(["sample", str(run), "--out", str(out), *options]) == 0
    return np.load(out) if out.suffix == ".npz" else out


def test_sample_writes_a_grid_an_array_file_or_a_folder(tiny, tmp_path, capsys):
    grid = Image.open(sample(tiny, tmp_path / "deep" / "grid.png", "--n", "20"))
    assert grid.size == (91 * 7, 19 * 7)  # one column per class, two rows, enlarged
    arrays = sample(tiny, tmp_path / "a.npz", "--n", "12")
    assert arrays["images"].shape == (12, 8, 8, 1) and arrays["images"].dtype == np.uint8
    assert arrays["labels"].tolist() == [*range(10), 0, 1]
    folder = sample(tiny, tmp_path / "folder", "--n", "3")
    assert sorted(p.name for p in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "00002.png")), arrays["images"][2, ..., 0])
    assert "ema weights, seed 0" in capsys.readouterr().out


def test_a_folder_fills_during_sampling(tiny, tmp_path, monkeypatch):
    there, convert = [], Scaling.decode

    def watched(self, x):
        there.append((len(x), len(list(tmp_path.glob(".folder.tmp-*/*.png")))))
        return convert(self, x)

    monkeypatch.setattr(Scaling, "decode", watched)
    sample(tiny, tmp_path / "folder", "--n", "10", "--batch_size", "4")
    assert there == [(4, 0), (4, 4), (2, 8)] and len(list((tmp_path / "folder").iterdir())) == 10


def test_bf16_gives_nearly_the_same_picture(tiny, tmp_path):
    first = sample(tiny, tmp_path / "a.npz", "--n", "10")["images"].astype(int)
    again = sample(tiny, tmp_path / "b.npz", "--n", "10", "--precision", "bf16")["images"].astype(int)
    assert 0 < np.abs(first - again).max() and np.abs(first - again).mean() < 3


def test_pictures_depend_on_the_seed_and_not_on_the_batch(tiny, tmp_path):
    first = sample(tiny, tmp_path / "a.npz", "--n", "10", "--batch_size", "10")["images"].astype(int)
    again = sample(tiny, tmp_path / "b.npz", "--n", "10", "--batch_size", "3")["images"].astype(int)
    assert np.abs(first - again).max() <= 1
    other = sample(tiny, tmp_path / "c.npz", "--n", "10", "--seed", "1")["images"].astype(int)
    assert np.abs(first - other).max() > 50


def test_options_of_sampling_change_the_pictures(tiny, tmp_path):
    base = sample(tiny, tmp_path / "a.npz", "--n", "4")["images"].astype(int)
    variants = {
        "label": ["--label", "3"], "scale": ["--scale", "6"], "steps": ["--steps", "3"], "eta": ["--eta", "1"],
        "raw": ["--weights", "raw"], "grid": ["--grid", "leading"],
        "ddpm": ["--sampler", "DDPM", "--steps", "20"], "large": ["--sampler=DDPM", "--steps=20", "--variance=large"],
    }  # fmt: skip
    seen = [base]
    for name, options in variants.items():
        images = sample(tiny, tmp_path / f"{name}.npz", "--n", "4", *options)["images"].astype(int)
        assert all(np.abs(images - other).max() > 0 for other in seen), name
        seen.append(images)
    assert np.load(tmp_path / "label.npz")["labels"].tolist() == [3, 3, 3, 3]


def test_sampler_is_found_by_import_path(tiny, tmp_path):
    a = sample(tiny, tmp_path / "a.npz", "--n", "2", "--sampler", "DDIM", "--steps", "4")["images"]
    b = sample(tiny, tmp_path / "b.npz", "--n", "2", "--sampler", "diffusion.samplers.ddim.DDIM", "--steps", "4")[
        "images"
    ]
    assert np.array_equal(a, b)


def test_experiment_run_and_file_are_the_same_model(tiny, tmp_path):
    pictures = [
        sample(p, tmp_path / f"{k}.npz", "--n", "2")["images"]
        for k, p in enumerate((tiny, tiny.parent, tiny / "checkpoints" / "last.ckpt"))
    ]
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("frames, expected", [(4, 4), (40, 6)])
def test_film_is_written_as_gif(tiny, tmp_path, frames, expected):
    out = tmp_path / "a.gif"
    options = ["--n", "9", "--frames", str(frames), "--hold", "1", "--fps", "10", "--size", "32"]
    assert main(["film", str(tiny), "--out", str(out), *options]) == 0
    gif = Image.open(out)
    assert gif.n_frames == expected and gif.size == (28 * 4, 28 * 4)  # 5 steps and the noise before them
    first = np.asarray(gif.convert("L")).astype(float)
    gif.seek(expected - 1)
    assert gif.info["duration"] == 1100
    assert first[4:36, 4:36].std() > 60  # the first frame is noise, enlarged fourfold
    assert np.array_equal(first[::4, ::4].repeat(4, 0).repeat(4, 1), first)


@pytest.mark.parametrize("suffix", [".mp4", pytest.param(".webm", marks=pytest.mark.slow), ".webp"])
def test_film_has_the_format_of_its_suffix(suffix, tiny, tmp_path):
    """The same walk as a lossless APNG, by the alias `gif`, and in another format."""
    options = ["--n", "4", "--frames", "4", "--hold", "1", "--fps", "10", "--size", "28", "--seed", "3"]
    seen = []
    for command, name in (("gif", "exact.png"), ("film", f"a{suffix}")):
        assert main([command, str(tiny), "--out", str(tmp_path / name), *options]) == 0
        seen.append(iio.imread(tmp_path / name, plugin="pyav" if suffix in (".mp4", ".webm") else "pillow", index=...))
    exact, other = (x if x.ndim == 4 else x[..., None] for x in seen)
    assert len(exact) == 4 and len(other) == (4 if suffix == ".webp" else 14)
    error = np.abs(exact[-1, :, :, :1].astype(float) - other[-1, : exact.shape[1], : exact.shape[2], :3]).mean()
    assert error < (0.01 if suffix == ".webp" else 15)  # video compression loses much of the noise
