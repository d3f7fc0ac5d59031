"""Conditions on the command line: names, lists, mixes, vectors, rows and images, and their errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import Diffusion, Pipeline
from diffusion.cli import main
from diffusion.denoiser.targets import V
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM

from .conftest import TINY
from .test_bad_input import refused

NAMES = ("hero", "side", "food", "spell")


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """The checkpoint of an untrained model of four named features, whose output depends on them."""
    return checkpoint(tmp_path_factory.mktemp("contexts"), NAMES)


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("nameless"), ())


def checkpoint(folder, names):
    torch.manual_seed(0)
    net = ResidualMLP(1, (8, 8), width=16, depth=1, context_dim=4)
    for p in net.parameters():
        if not p.any():  # initially 0: the output would be 0 and ignore the condition
            torch.nn.init.normal_(p, std=0.3)
    model = Diffusion(net, Cosine(50), V(), sampler=DDIM(3), shape=(1, 8, 8), class_names=names)
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 0, "epoch": 0}
    torch.save(state, folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.fixture(scope="module", params=["LowResolution", "Masked"])
def hinted(request, tmp_path_factory):
    """A finished run of digits with a hint."""
    out = tmp_path_factory.mktemp("hinted")
    options = ["--trainer.max_epochs", "1", "--data.limit", "64", "--samples.n", "6", "--gif.n", "4"]
    hint = [f"--model.hint={request.param}"]
    hint += ["--model.hint.factor=2", "--data.labels=false"] if request.param == "LowResolution" else []
    assert main(["fit", *TINY, *options, *hint, "--experiment", "h", "--out", str(out)]) == 0
    return out / "h" / "version_0"


def sample(run, out, *options):
    assert main(["sample", str(run), "--out", str(out), *map(str, options)]) == 0
    return np.load(out) if out.suffix == ".npz" else np.asarray(Image.open(out))


@pytest.mark.parametrize("options, wanted", [
    (["--n", 3], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
    (["--label", "food", "--n", 2], [[0, 0, 1, 0]] * 2),
    (["--label", "2", "--n", 1], [[0, 0, 1, 0]]),
    (["--labels", "food,hero"], [[0, 0, 1, 0], [1, 0, 0, 0]]),
    (["--labels", "3, hero", "--n", 3], [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]]),
    (["--context", "hero=1,food=0.6", "--n", 2], [[1, 0, 0.6, 0]] * 2),
    (["--context", "hero,food=.6", "--context", "spell=-2", "--n", 3], [[1, 0, 0.6, 0], [0, 0, 0, -2], [1, 0, 0.6, 0]]),
    (["--context", "hero=1,food=0.6", "--context", "3=0.5"], [[1, 0, 0.6, 0], [0, 0, 0, 0.5]]),
    (["--each", "--n", 2], [[1, 0, 0, 0]] * 2 + [[0, 1, 0, 0]] * 2 + [[0, 0, 1, 0]] * 2 + [[0, 0, 0, 1]] * 2),
    (["--each", "--context", "hero", "--context", "side=.5", "--n", 2], [[1, 0, 0, 0]] * 2 + [[0, 0.5, 0, 0]] * 2),
])  # fmt: skip
def test_conditions_are_kept_in_the_file(options, wanted, contexts, tmp_path):
    kept = sample(contexts, tmp_path / "a.npz", *options)
    assert kept["labels"] == pytest.approx(np.array(wanted, np.float32)) and len(kept["images"]) == len(wanted)
    assert tuple(kept["class_names"]) == NAMES


def test_a_requested_vector_is_the_one_sampled(contexts, tmp_path):
    """A vector given by name, from a file or by hand gives the same pictures; another mix gives others."""
    vectors = np.array([[1, 0, 0.6, 0], [0, 0.25, 0, 0]])
    np.save(tmp_path / "v.npy", vectors)
    by_file = sample(contexts, tmp_path / "a.npz", "--context", tmp_path / "v.npy")
    by_name = sample(contexts, tmp_path / "b.npz", "--context", "hero=1,food=0.6", "--context", "side=0.25")
    assert np.array_equal(by_file["images"], by_name["images"]) and np.allclose(by_file["labels"], vectors)
    x = Pipeline.load(contexts, "raw").sample(2, torch.tensor(vectors, dtype=torch.float32))
    by_hand = ((x.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(by_hand - by_file["images"].astype(float)).max() <= 1
    other = sample(contexts, tmp_path / "c.npz", "--context", "hero=1,food=0.5", "--n", 2)
    assert np.abs(other["images"][0].astype(int) - by_name["images"][0]).max() > 0


def test_unnamed_vectors_and_their_default(nameless, tmp_path):
    """One vector is (D,) or (1, D); without a vector the null row is used."""
    np.save(tmp_path / "v.npy", np.array([1, 0, 0.5, 0]))
    assert sample(nameless, tmp_path / "a.npz", "--context", tmp_path / "v.npy", "--n", 2)["labels"].shape == (2, 4)
    free = sample(nameless, tmp_path / "b.npz", "--n", 3)
    assert free["labels"].tolist() == [-1] * 3
    x = Pipeline.load(nameless, "raw").sample(3)
    null = ((x.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(null - free["images"].astype(float)).max() <= 1


def test_each_makes_one_row_per_label(tiny, contexts, tmp_path):
    """The rows of the grid are the classes in order, and its tiles are the pictures of the .npz."""
    kept = sample(tiny, tmp_path / "a.npz", "--each", "--n", 3)
    assert kept["labels"].tolist() == [k for k in range(10) for _ in range(3)]
    grid = sample(tiny, tmp_path / "a.png", "--each", "--n", 3)
    rows, scale = 10, (grid.shape[1]) // (3 * 9 + 1)
    assert grid.shape == ((rows * 9 + 1) * scale, (3 * 9 + 1) * scale)
    tile = grid[::scale, ::scale][9 * 4 + 1 : 9 * 5, 9 * 2 + 1 : 9 * 3]
    assert np.array_equal(tile, kept["images"][4 * 3 + 2, ..., 0])
    mixes = sample(contexts, tmp_path / "b.png", "--each", "--context", "hero", "--context", "food=.5")
    assert mixes.shape[1] / mixes.shape[0] == (8 * 9 + 1) / (2 * 9 + 1)  # two rows of eight
    assert main(["film", str(tiny), "--each", "--labels", "1,2,3", "--n", "2", "--out", str(tmp_path / "a.gif")]) == 0
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size[0] / gif.size[1] == (2 * 9 + 1) / (3 * 9 + 1)


@pytest.mark.parametrize("options, words", [
    (["--label", "1", "--labels", "1,2"], ["label and labels contradict"]),
    (["--label", "1", "--context", "hero"], ["label and context contradict"]),
    (["--label", "1", "--each"], ["as labels"]),
    (["--label", "herp"], ["label herp", "did you mean 'hero'"]),
    (["--labels", "hero,4"], ["label 4: labels are 0 .. 3 (hero, side, food, spell)"]),
    (["--labels", "hero,,food"], ["label : labels are"]),
    (["--context", "herp=1"], ["label herp", "did you mean 'hero'"]),
    (["--context", "hero=x"], ["wanted a number after hero=, got 'x'"]),
    (["--context", "hero=nan"], ["wanted a number after hero="]),
    (["--context", "hero=1,0=2"], ["0 is given twice"]),
    (["--context", "nowhere.npy"], ["nowhere.npy"]),
    (["--context", "wide.npy"], ["wanted numbers (N, 4)", "(2, 5)"]),
    (["--context", "nan.npy"], ["finite"]),
    (["--context", "text.npy"], ["wanted an array of numbers"]),
    (["--image", "test"], ["trained without a hint"]),
    (["--image", "test", "--each"], ["each: not for models that take an image"]),
    (["--n", "0", "--each"], ["n and batch_size must be at least 1"]),
])  # fmt: skip
def test_sample_refuses_contradictory_conditions(options, words, contexts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((2, 5)))
    np.save("nan.npy", np.full(4, np.nan))
    (tmp_path / "text.npy").write_text("hello")
    for command in ("sample", "film"):
        refused(capsys, [command, contexts, *options], *words)
    assert {p.name for p in tmp_path.iterdir()} == {"wide.npy", "nan.npy", "text.npy"}


def test_labels_refuse_mixes_and_unnamed_vectors_refuse_each(tiny, nameless, capsys):
    refused(capsys, ["sample", tiny, "--context", "1=1"], "takes labels, not mixes; use label")
    refused(capsys, ["sample", nameless, "--each"], "no classes", "context FILE.npy")


def test_test_images_are_reduced_by_the_hint(hinted, tmp_path, capsys):
    """The network receives the hint of the test images; the grid has condition, result and truth side by side."""
    masked = "Masked" in str(Pipeline.load(hinted).hint)
    kept = sample(hinted, tmp_path / "a.npz", "--image", "test", "--n", 5)
    assert "to the truth: " in capsys.readouterr().out
    from diffusion.data import Digits

    images, labels = Digits().arrays("test")
    truth = (images[:5].float() / 127.5 - 1).numpy()
    assert np.allclose(kept["truth"], truth)
    if masked:
        assert kept["labels"].tolist() == labels[:5].tolist()
        assert np.allclose(kept["condition"][:, :1], truth * kept["condition"][:, 1:])
    else:
        assert kept["labels"].tolist() == [-1] * 5
        assert np.allclose(kept["condition"], truth.reshape(5, 1, 4, 2, 4, 2).mean((3, 5)), atol=1e-6)
    other = sample(hinted, tmp_path / "b.npz", "--image", "test", "--n", 5, "--seed", 1)
    assert np.array_equal(kept["condition"], other["condition"]) != masked  # masks are drawn by seed
    grid = sample(hinted, tmp_path / "a.png", "--image", "test", "--n", 5, "--columns", 2)  # 2 of 3 tiles per row
    scale = grid.shape[1] // (6 * 9 + 1)
    tiles = grid[::scale, ::scale]
    assert np.array_equal(tiles[1:9, 10:18], kept["images"][0, ..., 0])
    assert np.array_equal(tiles[10:18, 46:54], images[3, 0].numpy())
    assert main(["film", str(hinted), "--image", "test", "--n", "2", "--out", str(tmp_path / "a.gif")]) == 0


def test_hints_are_read_from_files(hinted, tmp_path, capsys):
    """PNGs (transparent where they are to be filled in) and arrays are read as the hint defines."""
    masked = "Masked" in str(Pipeline.load(hinted).hint)
    grey = np.random.RandomState(0).randint(0, 256, (2, 8, 8), np.uint8)
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[2:5, 1:7] = 0
    both = np.stack([grey, np.stack([alpha] * 2)], axis=-1)  # (2, 8, 8, 2)
    np.savez(tmp_path / "own.npz", images=both if masked else grey[..., None])
    Image.fromarray(both[0], "LA").save(tmp_path / "own.png")
    png = sample(hinted, tmp_path / "a.npz", "--image", tmp_path / "own.png", "--n", 3)
    npz = sample(hinted, tmp_path / "b.npz", "--image", tmp_path / "own.npz", "--n", 3)
    assert png["labels"].tolist() == [-1] * 3  # no label, unless one is given
    assert np.array_equal(png["condition"][0], npz["condition"][0])
    assert np.array_equal(npz["condition"][0], npz["condition"][2])  # two pictures, in turn
    x = grey[0] / 127.5 - 1
    wanted = np.stack([x * (alpha > 0), alpha > 0]) if masked else x.reshape(1, 4, 2, 4, 2).mean((2, 4))
    assert np.allclose(png["condition"][0], wanted, atol=1e-6)
    assert np.array_equal(png["images"][0], npz["images"][0]) and not np.array_equal(png["images"][1], npz["images"][1])
    if masked:
        threes = sample(hinted, tmp_path / "c.npz", "--image", tmp_path / "own.npz", "--n", 3, "--label", 3)
        assert threes["labels"].tolist() == [3] * 3 and not np.array_equal(threes["images"], npz["images"])
    capsys.readouterr()
    refused(capsys, ["sample", hinted], "give one with --image FILE, or --image test")
    np.save(tmp_path / "small.npy", np.zeros((1, 3, 3, 1), np.uint8))
    refused(capsys, ["sample", hinted, "--image", tmp_path / "small.npy"], "3x3")
    refused(capsys, ["sample", hinted, "--image", tmp_path / "nowhere.png"], "nowhere.png")
    refused(capsys, ["sample", hinted, "--image", "own.bmp"], ".png, .npy or .npz file, or the word test")
    np.save(tmp_path / "float.npy", np.zeros((1, 8, 8, 1)))
    refused(capsys, ["sample", hinted, "--image", tmp_path / "float.npy"], "wanted uint8")
    refused(capsys, ["sample", hinted, "--image", "test", "--data.bogus", "1"], "bogus")


def test_training_samples_and_other_commands_use_the_hint(hinted, capsys):
    """The run's grid shows threes, the likelihood receives the hint, and the suggested commands work."""
    (grid,) = (hinted / "samples").glob("step*.png")
    width, height = Image.open(grid).size
    assert width / height == (12 * 9 + 1) / (2 * 9 + 1)  # six examples, four per row
    assert main(["nll", str(hinted), "--n", "2", "--steps", "3", "--method", "vlb"]) == 0
    assert main(["validate", str(hinted)]) == 0
    assert main(["describe", str(hinted)]) == 0
    assert ", Masked" in (said := capsys.readouterr().out) or ", LowResolution" in said
