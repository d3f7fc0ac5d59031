"""Cascades on the command line and from Python: a base of 4x4 digits and two models that enlarge its pictures."""

import shutil

import numpy as np
import pytest
import torch

import diffusion
from diffusion import Diffusion, Pipeline, pictures
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.denoiser.hints import LowResolution
from diffusion.denoiser.targets import V
from diffusion.generation import editing
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.guidance import ClassifierFree
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.scaling import Scaling
from tests.commands.conftest import TINY

NAMES = tuple("0123456789")


def checkpoint(file, side, hint=None, classes=0, names=NAMES, channels=1):
    torch.manual_seed(side)
    shown = 0 if hint is None else hint.shape((channels, side, side))[0]
    net = ResidualMLP(channels, (side, side), width=16, depth=1, num_classes=classes, image_channels=shown)
    for weight in net.parameters():  # some are initially 0
        torch.nn.init.normal_(weight, std=0.2)
    guidance = {"guidance": ClassifierFree(1.5)} if classes else {}
    facts = {"shape": (channels, side, side), "class_names": names if classes else ()}
    model = Diffusion(net, Cosine(50), V(), sampler=DDIM(3), hint=hint, **facts, **guidance)
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 0, "epoch": 0}
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    return {
        "base": checkpoint(folder / "base.ckpt", 4, classes=10),
        "8": checkpoint(folder / "8.ckpt", 8, LowResolution(2, 0.5)),
        "16": checkpoint(folder / "16.ckpt", 16, LowResolution(2)),
        "letters": checkpoint(folder / "letters.ckpt", 4, classes=10, names=tuple("abcdefghij")),
        "three": checkpoint(folder / "three.ckpt", 8, LowResolution(2), channels=3),
        "other": checkpoint(folder / "other.ckpt", 8, LowResolution(2, 0.5), 10, tuple("abcdefghij")),
    }


def test_sample_then_enlarge(stages, tmp_path, capsys):
    """The command, Python and the pipeline give the same pictures, of the size of the last stage."""
    base, first, second = (str(stages[name]) for name in ("base", "8", "16"))
    options = ["--n", "5", "--label", "3", "--seed", "4", "--steps", "5", "--scale", "2"]
    then = ["--then", first, "--then", second, "--augment", "0.3,0"]
    assert main(["sample", base, *then, *options, "--out", str(tmp_path / "a.npz")]) == 0
    kept = np.load(tmp_path / "a.npz")
    assert kept["images"].shape == (5, 16, 16, 1) and kept["labels"].tolist() == [3] * 5
    said = capsys.readouterr().out
    assert "DDIM 5 steps, then DDIM 3 steps (augment 0.3), then DDIM 3 steps (augment 0), ema weights" in said
    made = diffusion.sample(
        base, 5, label=3, seed=4, steps=5, scale=2.0, then=[first, second], augment=(0.3, 0), batch_size=2
    )
    assert np.abs(kept["images"][:, None, ..., 0] - (made.numpy() + 1) * 127.5).max() <= 1
    whole = Cascade.of(*map(Pipeline.load, (base, first, second)), augment=[0.3, 0])
    whole = whole.with_augment([0.3, 0])
    assert whole.class_names == NAMES and diffusion.sample(whole, 2).shape == (2, 1, 16, 16)
    exact = diffusion.sample(base, 5, label=3, seed=4, steps=5, scale=2.0, then=[first, second])
    assert (exact - made).abs().max() > 1e-3


def test_film_and_folder_of_a_cascade(stages, tmp_path):
    then = ["--then", str(stages["8"]), "--augment", "0.2"]
    assert main(["film", str(stages["base"]), *then, "--n", "2", "--out", str(tmp_path / "a.gif")]) == 0
    assert main(["sample", str(stages["base"]), *then, "--each", "--n", "1", "--out", str(tmp_path / "a")]) == 0
    assert len(list((tmp_path / "a").glob("*.png"))) == 10
    assert main(["sample", str(stages["base"]), *then, "--out", str(tmp_path / "a.png"), "--n", "4"]) == 0


UNFIT = [
    ("base", ["--then", "16"], "the stage to 1x16x16 enlarges images of 1x8x8, but gets 1x4x4"),
    ("base", ["--then", "base"], "a later stage enlarges images: train it with hint LowResolution"),
    ("base", ["--then", "other"], "the base has 10 classes (0, 1, 2"),
    ("base", ["--then", "8", "--augment", "0.7"], "was trained with noise of 0 .. 0.5, got 0.7"),
    ("base", ["--then", "8", "--augment", "-1"], "was trained with noise of 0 .. 0.5, got -1"),
    ("base", ["--then", "8", "--augment", "0.1,0.2"], "wanted one number or one per later stage (1)"),
    ("base", ["--then", "8", "--augment", "much"], "e.g. 0.3; got 'much'"),
    ("base", ["--then", "three"], "enlarges images of 3x4x4, but gets 1x4x4"),
    ("base", ["--augment", "0.1"], "augment: there is no later stage"),
    ("base", ["--then", "nowhere"], "nowhere"),
    ("8", ["--then", "16"], "give one with --image FILE"),
]  # fmt: skip


@pytest.mark.parametrize("base, options, words", UNFIT)
def test_cascades_that_do_not_fit_are_refused(base, options, words, stages, capsys, tmp_path):
    options = [str(stages.get(word, word)) for word in options]
    verbs = [["sample", "--n", "2"], ["film", "--n", "2"], ["edit", "stop", "--n", "2"], ["evaluate"]]
    for verb, *rest in verbs[: 1 if base == "8" else 4]:
        rest, out = (rest[:1], rest[1:]) if verb == "edit" else ([], rest)
        out = [] if verb == "evaluate" else [*out, "--out", str(tmp_path / ("a.gif" if verb == "film" else "a.png"))]
        assert main([verb, *rest, str(stages[base]), *options, *out]) == 2
        said = capsys.readouterr().err
        assert words in said and said.strip().count("\n") == 0, said
    assert not list(tmp_path.iterdir())


def test_stages_of_different_data_are_refused(enlarging, stages, tmp_path, capsys):
    """By the class names, and by the data set of the base's configuration."""
    letters, out = str(stages["letters"]), ["--out", str(tmp_path / "a.png")]
    for argv in (["evaluate", letters, "--n", "20"], ["edit", "img2img", letters, *out]):
        assert main([*argv, "--then", str(enlarging)]) == 2
        said = capsys.readouterr().err.strip()
        assert "the base has the classes a, b, c, d, e, f, g, h, i, j, the data of" in said and "\n" not in said
    run = tmp_path / "other"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(stages["base"], run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text("data:\n  class_path: diffusion.data.MNIST\n")
    assert main(["evaluate", str(run), "--then", str(enlarging), "--n", "20"]) == 2
    said = capsys.readouterr().err.strip()
    assert "was trained on MNIST" in said and "on Digits; train all stages on the same data" in said
    assert "\n" not in said


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory):
    """A finished run that enlarges digits, with noise on its input."""
    out = tmp_path_factory.mktemp("enlarging")
    hint = ["--model.hint=LowResolution", "--model.hint.factor=2", "--model.hint.noise=0.4", "--data.labels=false"]
    options = ["--trainer.max_epochs", "1", "--data.limit", "64", "--samples.n", "4", "--gif.n", "2"]
    assert main(["fit", *TINY, *options, *hint, "--experiment", "e", "--out", str(out)]) == 0
    return out / "e" / "version_0"


@pytest.mark.slow
def test_evaluate_sweeps_the_noise(enlarging, stages, tmp_path, capsys):
    """One row per strength, measured against the data of the last stage; every figure of its own file."""
    words = ["--then", str(enlarging), "--n", "40", "--metrics", "swd", "--features", str(extractor(tmp_path))]
    assert main(["evaluate", str(stages["base"]), *words, "--sweep", "augment=0,0.2,0.4"]) == 0
    said = capsys.readouterr().out
    assert all(f"augment={s}" in said for s in ("0.0", "0.2", "0.4")) and "--augment 0." in said
    files = list((enlarging / "evaluation").glob("step*.json"))
    assert len(files) == 3
    assert main(["evaluate", str(stages["base"]), *words, "--augment", "0.2"]) == 0  # read from its file
    assert len(list((enlarging / "evaluation").glob("step*.json"))) == 3
    assert main(["evaluate", str(stages["base"]), *words, "--augment", "0.5"]) == 2
    assert "trained with noise of 0 .. 0.4, got 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inpaint", "img2img", "interpolate", "vary", "reconstruct", "stop"])
def test_edit_a_cascade(verb, enlarging, stages, tmp_path, capsys):
    """Test images are those of the last stage, with their labels; the rows are those of the library."""
    how = ["--then", str(enlarging), "--augment", "0.2", "--steps", "3"]
    how += [] if verb == "stop" else ["--numbers", "4,7,9"]
    how += ["--jumps", "1"] if verb == "inpaint" else []
    assert main(["edit", verb, str(stages["base"]), *how, "--out", str(tmp_path / "a.npz")]) == 0
    assert "3 steps, then DDIM 5 steps (augment 0.2), ema weights" in capsys.readouterr().out
    rows = np.load(tmp_path / "a.npz")
    assert all(row.shape[1:] == (8, 8, 1) for row in rows.values())
    if verb == "stop":
        return
    whole = Cascade.of(Pipeline.load(stages["base"]), Pipeline.load(enlarging), augment=0.2)
    whole = Choices(steps=3).apply(whole)
    images, y = (v[[4, 7, 9]] for v in Digits().arrays("test"))
    x0 = Scaling().encode(images)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    row, made = {
        "inpaint": lambda: ("result, seed 0", editing.inpaint(whole, x0, mask, y, jumps=1)),
        "img2img": lambda: ("result, seed 0", editing.img2img(whole, x0, 0.5, y)),
        "interpolate": lambda: (
            "from picture 1 to 2", editing.interpolate(whole, x0[:1], x0[1:2], 9, y[:1], y[1:2])[0],
        ),
        "vary": lambda: ("variation, seed 0", editing.vary(whole, x0, 0.3, 1, y)[:, 0]),
        "reconstruct": lambda: ("there and back", editing.reconstruct(whole, x0, y)[0]),
    }[verb]()  # fmt: skip
    assert np.abs(rows[row] - pictures.to_uint8(made).astype(float)).max() <= 1


def test_choices_of_an_edit_are_of_the_base(enlarging, stages, tmp_path, capsys):
    """Guidance of an inversion is off unless chosen; a sampler that cannot be inverted is refused."""
    base, then = str(stages["base"]), ["--then", str(enlarging), "--numbers", "4,7"]
    for k, more in enumerate(([], ["--scale", "3"], ["--guidance", "Plain"])):
        out = str(tmp_path / f"{k}.npz")
        assert main(["edit", "vary", base, *then, "--amount", "0.8", "--out", out, "--n", "1", *more]) == 0
    free, guided, plain = (np.load(tmp_path / f"{k}.npz")["variation, seed 0"] for k in range(3))
    assert np.array_equal(free, plain) and not np.array_equal(free, guided)
    capsys.readouterr()
    assert main(["edit", "reconstruct", base, *then, "--sampler", "Heun", "--out", str(tmp_path / "a.png")]) == 2
    assert "only DDIM with eta = 0 can be inverted, got Heun" in capsys.readouterr().err


def test_an_enlarging_run_takes_its_own_test_images_too(enlarging, tmp_path):
    assert main(["sample", str(enlarging), "--image", "test", "--n", "4", "--out", str(tmp_path / "a.npz")]) == 0
    assert np.load(tmp_path / "a.npz")["condition"].shape == (4, 2, 4, 4)


def extractor(folder):
    from diffusion.metrics.features import FeatureNet
    from diffusion.training.systems import Classifier

    torch.manual_seed(0)
    data = Digits()
    model = Classifier(FeatureNet(1, num_classes=10), shape=data.shape, class_names=data.class_names)
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 0, "epoch": 0}
    torch.save(state, folder / "features.ckpt")
    return folder / "features.ckpt"
