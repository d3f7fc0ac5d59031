"""Arrays of any type from `fit` to `sample`: samples leave in the type, layout and units in which the data came."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion
from diffusion import Pipeline
from diffusion.cli import main
from diffusion.guidance import Clamp, Unbounded
from diffusion.support import runs

TINY = [
    "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "2",
    "--model.net.widths", "[8,16]", "--model.net.heads", "2", "--model.net.attention", "1",
    "--model.schedule", "Cosine", "--model.target", "V",
    "--model.sampler.steps", "3", "--samples.n", "4", "--gif.n", "1", "--gif.frames", "2", "--diagnostics.images", "8",
    "--data", "Arrays", "--data.batch_size", "16", "--checkpoint.every_n_steps", "3",
]  # fmt: skip
N = 64
FEW = ["--device", "cpu", "--n", "3", "--seed", "2"]


def fields(channels, scale, dtype):
    """Smooth fields (N, C, 16, 24), or (N, 16, 24, C) for few channels."""
    random = np.random.RandomState(0)
    x = random.randn(N, channels, 1, 1) + np.linspace(-1, 1, 16)[:, None] * np.linspace(-1, 1, 24)
    x = (x * scale + 8 * scale).astype(dtype)
    return x if channels > 4 else x.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on arrays of each type, by name, and on pairs; trained when first asked for."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "uint16":
                np.save(folder / "i.npy", fields(3, 1000, np.uint16))
            else:
                np.save(folder / "i.npy", fields(5, 1000, np.float32))
            words = [*TINY, "--data.images", "i.npy", "--data.root", str(folder), "--out", str(folder)]
            if name == "pairs":
                low = fields(5, 1000, np.float32)[:, :2].reshape(N, 2, 4, 4, 6, 4).mean((3, 5))
                np.save(folder / "low.npy", low.astype(np.float32))
                words += ["--data.condition", "low.npy"]
            assert main(["fit", *words]) == 0
            made[name] = folder / "arrays" / "version_0"
        return made[name]

    return run


def sample(run, out, *options):
    assert main(["sample", str(run), "--out", str(out), *FEW, *options]) == 0
    return np.load(out) if out.suffix in (".npy", ".npz") else out


def test_float_samples_are_float_arrays_in_the_data_s_units(trained, tmp_path):
    run = trained("float32")
    made = sample(run, tmp_path / "x.npy")
    assert made.dtype == np.float32 and made.shape == (3, 5, 16, 24)
    assert 5000 < np.median(made) < 11000  # 8000 +- 1000
    kept = sample(run, tmp_path / "x.npz")
    assert np.array_equal(kept["images"], made)
    assert np.allclose(diffusion.sample(run, 3, seed=2, device="cpu"), made, atol=1)
    folder = sample(run, tmp_path / "x")
    assert np.array_equal(np.load(folder / "00002.npy"), made[2])
    pipeline = Pipeline.load(run)
    x = pipeline.sample(3, seed=2)
    assert np.allclose(pipeline.scaling.decode(x), made, atol=1) and x.abs().max() < 20
    assert isinstance(pipeline.clamp, Unbounded)
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["hyper_parameters"]["scaling"]["dtype"] == "float32"
    assert Image.open(next((run / "samples").glob("*.png"))).mode == "RGB"


def test_16_bit_samples_are_16_bit_arrays_and_pngs(trained, tmp_path):
    av = pytest.importorskip("av")
    run = trained("uint16")
    made = sample(run, tmp_path / "x.npy")
    assert made.dtype == np.uint16 and made.shape == (3, 16, 24, 3)
    data = np.load(run.parent.parent / "i.npy")
    assert data.min() <= made.min() and made.max() <= data.max()  # the range of the data bounds them
    assert isinstance(Pipeline.load(run).clamp, Clamp)
    folder = sample(run, tmp_path / "x")
    with av.open(str(folder / "00001.png")) as file:
        frame = next(file.decode(video=0))
        assert frame.format.name == "rgb48be"
        assert np.array_equal(frame.to_ndarray(), made[1])


def test_pictures_show_the_bands_that_are_asked_for(trained, tmp_path):
    run = trained("float32")
    three = np.asarray(Image.open(sample(run, tmp_path / "a.png", "--bands", "3,2,1")))
    usual = np.asarray(Image.open(sample(run, tmp_path / "b.png")))
    one = np.asarray(Image.open(sample(run, tmp_path / "c.png", "--bands", "4")))
    assert three.shape == usual.shape == one.shape and np.array_equal(three, usual[..., ::-1])
    assert not (one[..., 0] == one[..., 1]).all()  # in colours
    folder = sample(run, tmp_path / "x", "--bands", "1,2,3")
    assert Image.open(folder / "00000.png").size == (24, 16)
    assert main(["film", str(run), "--out", str(tmp_path / "a.gif"), "--frames", "2", "--bands", "2", *FEW]) == 0
    assert Image.open(tmp_path / "a.gif").n_frames == 2


@pytest.mark.parametrize("options, words", [
    (["--bands", "1,2"], "bands 1,2: wanted one or three of 1 .. 5, e.g. 3,2,1"),
    (["--bands", "6"], "bands 6: wanted one or three of 1 .. 5"),
    (["--bands", "red"], "bands red: wanted one or three"),
    (["--out", "x.tif"], "wanted a .png, a .npy, a .npz, or a folder name without a dot"),
])  # fmt: skip
def test_wrong_bands_and_files_are_refused(trained, options, words, capsys):
    assert main(["sample", str(trained("float32")), *FEW, *options]) == 2
    assert words in capsys.readouterr().err


def test_bits_per_dimension_of_floats_are_refused(trained, capsys):
    run = trained("float32")
    assert main(["nll", str(run), "--device", "cpu"]) == 2
    assert "bits per dimension are of 8-bit images; those of this model are float32" in capsys.readouterr().err


def test_edits_of_floats_read_and_write_arrays(trained, tmp_path, capsys):
    run, out, given = trained("float32"), tmp_path / "x.npz", tmp_path / "given.npy"
    x = fields(5, 1000, np.float32)[:2]
    np.save(given, x)
    words = ["edit", "inpaint", str(run), "--input", str(given), "--jumps", "0", "--out", str(out), "--device", "cpu"]
    assert main(words) == 0
    with np.load(out) as rows:
        assert np.allclose(rows["input"], x, rtol=1e-6, atol=0.01)
        result = rows["result, seed 0"]
    assert result.dtype == np.float32 and np.allclose(result[..., :12], x[..., :12], rtol=1e-6, atol=0.01)
    assert not np.allclose(result[..., 12:], x[..., 12:], atol=1)
    assert main([*words[:-4], "--out", str(tmp_path / "x.png"), "--device", "cpu", "--bands", "3,2,1"]) == 0
    np.save(given, x.astype(np.float64))
    assert main(words) == 2 and "float64 (5, 16, 24), but the model's images are float32" in capsys.readouterr().err


def test_a_model_of_pairs_samples_from_images_of_its_own(trained, tmp_path, capsys):
    run = trained("pairs")
    low = np.load(run.parent.parent / "low.npy")
    np.save(tmp_path / "low.npy", low[:3])
    np.save(tmp_path / "one.npy", low[0].transpose(1, 2, 0))  # one picture, channels last
    made = sample(run, tmp_path / "x.npy", "--image", str(tmp_path / "low.npy"))
    assert made.shape == (3, 5, 16, 24) and made.dtype == np.float32
    assert np.allclose(sample(run, tmp_path / "y.npy", "--image", str(tmp_path / "one.npy"))[0], made[0], atol=1)
    kept = sample(run, tmp_path / "x.npz", "--image", str(tmp_path / "low.npy"))
    assert np.allclose(kept["condition"], low[:3], rtol=1e-6, atol=0.01)
    capsys.readouterr()
    test = sample(run, tmp_path / "z.npz", "--image", "test")
    said = capsys.readouterr().out
    assert "PSNR to the truth:" in said and "of the hints" not in said
    images = np.load(run.parent.parent / "i.npy")
    for condition, truth in zip(test["condition"], test["truth"], strict=True):  # they belong together
        k = np.abs(images - truth).mean((1, 2, 3)).argmin()
        assert np.allclose(condition, low[k], rtol=1e-5, atol=0.1)
    sample(run, tmp_path / "a.png", "--image", "test")
    hint = Pipeline.load(run).hint
    assert hint.size == (2, 4, 6) and torch.equal(
        hint.decode(hint.encode(torch.from_numpy(low))).round(), torch.from_numpy(low).round()
    )


@pytest.mark.parametrize("image, words", [
    (None, "this model makes 16x24 pictures from an input image (Paired): give one with --image FILE"),
    (np.zeros((3, 2, 4, 6)), "expected float32 (2, 4, 6), got float64 (2, 4, 6)"),
    (np.zeros((3, 3, 4, 6), np.float32), "expected float32 (2, 4, 6)"),
    (np.zeros((3, 5, 16, 24), np.float32), "expected float32 (2, 4, 6)"),
])  # fmt: skip
def test_images_of_another_kind_than_the_pairs_are_refused(trained, image, words, tmp_path, capsys):
    given = []
    if image is not None:
        np.save(tmp_path / "low.npy", image)
        given = ["--image", str(tmp_path / "low.npy")]
    assert main(["sample", str(trained("pairs")), "--out", str(tmp_path / "x.npy"), *FEW, *given]) == 2
    assert words in capsys.readouterr().err


def test_a_run_resumes_with_its_own_scaling_and_refuses_another(trained, tmp_path, capsys):
    run = trained("float32")
    folder = run.parent.parent
    words = ["fit", "-c", str(run / "config.yaml"), "--resume", str(run), "--trainer.max_epochs", "1"]
    assert main(words) == 0 and "changed:" not in capsys.readouterr().out.replace("changed: out", "")
    np.save(tmp_path / "i.npy", 2 * np.load(folder / "i.npy"))
    assert main([*words, "--data.root", str(tmp_path)]) == 2
    assert "model.scaling.shift" in capsys.readouterr().err
