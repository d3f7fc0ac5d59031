"""Models of latents on the command line: resuming without the autoencoder, hints, and refusals in one line."""

import pytest
import torch

from diffusion import Pipeline
from diffusion.cli import main
from diffusion.exchange.exporting.compact import compact
from diffusion.support import runs
from diffusion.training.systems import Diffusion

from .conftest import TINY
from .test_bad_input import refused


def fit(out, *words):
    return main(["fit", *TINY, "--out", str(out), *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An autoencoder of 8x8 -> 4x4x2 after two steps, and a model of its latents: their runs."""
    out = tmp_path_factory.mktemp("latents")
    words = ["--model.net.width", "8", "--data.limit", "320", "--trainer.max_steps", "2", "--out", str(out)]
    assert main(["fit", "-c", "configs/digits_autoencoder.yaml", "--trainer.accelerator", "cpu", *words]) == 0
    auto = out / "digits_autoencoder" / "version_0"
    assert fit(out, "--experiment", "whole", *codec(auto)) == 0
    return auto, out / "whole" / "version_0"


def codec(auto):
    return ["--model.codec", "Frozen", "--model.codec.autoencoder", str(auto)]


class Killed(BaseException):
    """As sudden as SIGKILL."""


def state(run):
    read = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    found = {f"raw {k}": v for k, v in read["state_dict"].items()}
    found |= {f"ema {k}": v for k, v in read["callbacks"]["EMA"]["shadow"].items()}
    for k, slots in read["optimizer_states"][0]["state"].items():
        found |= {f"adam {k} {name}": v for name, v in slots.items()}
    return found | {"step": torch.tensor(read["global_step"])}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit_without_its_autoencoder(made, tmp_path, monkeypatch, capsys):
    """From its recorded configuration, and from the words that started it; then it validates and samples."""
    auto, whole = made
    with monkeypatch.context() as patch:
        step = Diffusion.training_step

        def killed(self, batch, batch_idx):
            if self.trainer.global_step == 7:  # the newest checkpoint is that of step 6
                raise Killed
            return step(self, batch, batch_idx)

        patch.setattr(Diffusion, "training_step", killed)
        with pytest.raises(Killed):
            fit(tmp_path, "--experiment", "killed", *codec(auto))
    run, hidden = tmp_path / "killed" / "version_0", auto.with_name("hidden")
    auto.rename(hidden)
    try:
        capsys.readouterr()
        config = ["-c", str(run / "config.yaml"), "--resume", str(run)]
        assert main(["fit", *config]) == 0, capsys.readouterr().err
        assert "step 6, epoch 2" in capsys.readouterr().out
        assert "hash: ''" in (run / "config.yaml").read_text()  # as it was given
        ours, theirs = state(whole), state(run)
        assert ours.keys() == theirs.keys() and ours["step"] == 10
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), [k for k in ours if not ours[k].equal(theirs[k])]
        assert fit(tmp_path, *codec(auto), "--experiment", "killed", "--resume", str(run)) == 0
        assert "this run is complete" in capsys.readouterr().out
        assert main(["validate", str(run)]) == 0
        assert main(["sample", str(run), "--n", "4", "--out", str(tmp_path / "a.png")]) == 0
        capsys.readouterr()
        refused(capsys, ["fit", *TINY, "--out", tmp_path / "new", *codec(auto)], str(auto))
        assert not (tmp_path / "new").exists()
    finally:
        hidden.rename(auto)


def test_another_codec_is_refused_on_resuming(made, tmp_path, capsys):
    auto, run = made
    words = ["--model.codec", "PCA", "--model.codec.latent", "2", "--model.codec.factor", "2"]
    refused(capsys, ["fit", *TINY, "--out", tmp_path, *words, "--resume", run], "model.codec: Frozen -> PCA")
    changed = [*codec(auto), "--model.codec.weights", "raw"]
    refused(capsys, ["fit", *TINY, "--out", tmp_path, *changed, "--resume", run], "model.codec.weights: ema -> raw")


def test_a_compact_file_has_the_codec(made, tmp_path):
    _, run = made
    whole, small = Pipeline.load(run), Pipeline.load(compact(run, tmp_path / "m.ckpt", dtype="fp32"))
    assert small.codec.mark == whole.codec.mark
    assert torch.equal(small.sample(2, seed=1), whole.sample(2, seed=1))


PCA = ["--model.codec", "PCA", "--model.codec.latent", "2"]


@pytest.mark.parametrize("options, words", [
    ([*PCA, "--model.codec.factor", "3"], ["PCA: 8x8 is not divisible by its factor 3; pad to 9x9"]),
    ([*PCA, "--model.codec.factor", "2", "--model.codec.channels", "3"], ["a codec of 3 channels, got images of 1"]),
    ([*PCA, "--model.codec.factor", "0"], ["PCA: channels and factor must be at least 1"]),
    (codec("nowhere"), ["nowhere"]),
    ([*PCA, "--model.codec.factor", "2", "--data.latents", "disk"], ["disk"]),
    ([*PCA, "--model.codec.factor", "2", "--data.latents", "cache", "--model.hint", "Masked"],
     ["data.latents cache: Masked makes hints of the images of each batch; use data.latents fly"]),
    ([*PCA, "--model.codec.factor", "2", "--data.latents", "cache", "--data.augment", "[Rotate]"],
     ["data.latents cache: Rotate changes the images in each epoch"]),
])  # fmt: skip
def test_codecs_that_do_not_fit_are_refused(options, words, tmp_path, capsys):
    refused(capsys, ["fit", *TINY, "--out", tmp_path / "x", *options], *words)
    assert not (tmp_path / "x").exists()


def test_autoencoders_that_are_none_or_have_changed_are_refused(made, tmp_path, capsys):
    auto, run = made
    refused(capsys, ["fit", *TINY, "--out", tmp_path, *codec(run)], "expected an autoencoder; train one with")
    hash = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["hyper_parameters"]["codec"]["init_args"]["hash"]
    assert fit(tmp_path, *codec(auto), "--model.codec.hash", hash, "--trainer.fast_dev_run", "1") == 0
    capsys.readouterr()
    other = [*codec(auto), "--model.codec.hash", "0123456789ab"]
    said = f"{auto}: has changed since it was chosen as the codec: expected hash 0123456789ab, got {hash}"
    refused(capsys, ["fit", *TINY, "--out", tmp_path, *other], said)


@pytest.mark.parametrize("damage, words", [("missing", "are missing; use the run's own checkpoint"),
                                           ("changed", "expected hash")])  # fmt: skip
def test_a_file_without_its_codec_is_refused(made, damage, words, tmp_path, capsys):
    auto, run = made
    read = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state, given = read["state_dict"], read["hyper_parameters"]["codec"]["init_args"]
    if damage == "missing":
        read["state_dict"] = {k: v for k, v in state.items() if not k.startswith("codec.")}
    else:
        key = next(k for k in state if k.startswith("codec.net.") and k.endswith("weight"))
        state[key] = state[key] + 0.1
    file = tmp_path / "m.ckpt"
    torch.save(read, file)
    out = tmp_path / "a.png"
    refused(capsys, ["sample", file, "--n", "2", "--out", out], str(file), given["hash"], str(auto), words)
    assert not out.exists()


@pytest.mark.parametrize("hint, channels", [
    (["Masked"], 2 * 4),  # of 8x8 pixels, beside latents of 4x4
    (["LowResolution", "--model.hint.factor", "2"], 1),
    (["LowResolution", "--model.hint.factor", "4", "--model.hint.noise", "0.5"], 2),
])  # fmt: skip
def test_hints_are_in_pixels(hint, channels, tmp_path, capsys):
    """The network is made for them, trains and samples with images of the test set."""
    words = [*PCA, "--model.codec.factor", "2", "--model.hint", *hint, "--trainer.max_steps", "4"]
    assert fit(tmp_path, *words) == 0
    run = tmp_path / "digits" / "version_0"
    known = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["hyper_parameters"]
    assert known["net"]["init_args"]["image_channels"] == channels
    words = ["--image", "test", "--n", "2", "--out", str(tmp_path / "a.png")]
    assert main(["sample", str(run), *words]) == 0, capsys.readouterr().err
