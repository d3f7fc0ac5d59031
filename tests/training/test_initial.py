"""Fine-tuning: the weights that a run begins with, frozen parts, and learning rates of parts."""

import shutil

import pytest
import torch

import diffusion
from diffusion import Diffusion
from diffusion.cli import main
from diffusion.nets import AttentionUNet, UNet
from diffusion.noise import Cosine
from diffusion.support import runs
from diffusion.training import initial
from diffusion.training.systems.base import System

TINY = {
    "trainer.accelerator": "cpu", "trainer.limit_val_batches": 0, "trainer.precision": "32-true",
    "model.net.widths": [8, 16], "model.net.attention": 1, "samples.every_n_epochs": 0, "samples.n": 4, "gif.n": 1,
    "gif.frames": 2, "data.limit": 192, "diagnostics.images": 0, "model.sampler.steps": 2,
    "checkpoint.every_n_steps": 1,
}  # fmt: skip
CONFIG = "configs/digits.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps."""
    return diffusion.fit(CONFIG, max_epochs=1, out=tmp_path_factory.mktemp("runs"), settings=TINY)


def fit(out, init, **more):
    return diffusion.fit(CONFIG, max_epochs=1, out=out, init=init, seed=5, settings=TINY | more)


def weights(path):
    return runs.read_checkpoint(runs.find_checkpoint(path))["state_dict"]


def model(names="0123456789", **options):
    torch.manual_seed(9)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, ones=True, num_classes=len(names), **options)
    return Diffusion(net, Cosine(), shape=(1, 8, 8), class_names=list(names))


def test_run_begins_with_the_averaged_or_the_raw_weights(run):
    ema = runs.read_checkpoint(runs.find_checkpoint(run))["callbacks"]["EMA"]["shadow"]
    for kind, wanted in (("ema", ema), ("raw", weights(run))):
        mine = model()
        taken = initial.take(mine, run, kind)
        assert not taken.kept and not taken.unused and not taken.partly
        assert len(taken.names) == len(wanted) and "inc.body.0.weight" in taken.names
        assert all(torch.equal(v, wanted[k]) for k, v in mine.state_dict().items())


def test_new_parts_keep_their_initial_values_and_are_named(run):
    """A second clock, other widths, and classes of which some are known by name."""
    mine = model(second_clock=True)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    taken = initial.take(mine, run)
    assert set(taken.kept) == {k.removeprefix("denoiser.net.") for k in before if "second" in k} != set()
    said = str(taken)
    assert "not in the file: seconds.0.0.weight" in said and f"{len(taken.names)} of {len(before)} tensors" in said
    mine = model("5x3")
    rows = mine.denoiser.net.condition.embed.weight.detach().clone()
    taken = initial.take(mine, run)
    theirs = runs.read_checkpoint(runs.find_checkpoint(run))["callbacks"]["EMA"]["shadow"]
    theirs = theirs["denoiser.net.condition.embed.weight"]
    now = mine.denoiser.net.condition.embed.weight
    assert torch.equal(now[0], theirs[5]) and torch.equal(now[2], theirs[3]) and torch.equal(now[1], rows[1])
    assert taken.partly == {"condition.embed.weight": "2 of 3 classes, by name; others initial"}


def test_other_shapes_and_meanings_are_told(run):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, ones=False, num_classes=10)
    taken = initial.take(Diffusion(net, Cosine(), shape=(1, 8, 8)), run)
    assert "(8, 1, 3, 3) here, (8, 2, 3, 3) in the file: inc.body.0.weight" in str(taken)
    assert taken.notes == ["the file's target is V, this model's Eps; the weights have another meaning here"]
    with pytest.raises(ValueError, match="no tensor has the name and shape"):
        initial.take(Diffusion(UNet(3, 12, (1, 2), head_width=12), Cosine(), shape=(3, 8, 8)), run)


@pytest.mark.slow
def test_fine_tuned_run_resumes_without_the_file_it_began_with(run, tmp_path, capsys):
    """The first step starts from the given weights; a resumed run is the uninterrupted one, and the file is gone."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    whole = fit(tmp_path / "a", copy)
    assert "initial weights from" in capsys.readouterr().out
    plain = diffusion.fit(CONFIG, max_epochs=1, out=tmp_path / "b", seed=5, settings=TINY)
    assert any(not torch.equal(v, weights(plain)[k]) for k, v in weights(whole).items())
    part = fit(tmp_path / "c", copy)
    for file in (part / "checkpoints").iterdir():
        if file.name != "step00000002.ckpt":
            file.unlink()
    shutil.rmtree(copy)
    capsys.readouterr()
    again = diffusion.fit(part / "config.yaml", out=tmp_path / "c", resume=part)
    said = capsys.readouterr().out
    assert again == part and "initial weights" not in said and "resuming from" in said
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(part).items())


def test_frozen_parts_stay_and_scaled_parts_move_less(run, tmp_path):
    """AdamW's first step is the learning rate in every weight, so a factor of .1 moves a part a tenth as far."""
    once = {"model.weight_decay": 0.0, "data.limit": 64}
    tuned = fit(tmp_path, run, freeze="inc,maps.*", lr_scale="outc=0.1", **once)
    ema = runs.read_checkpoint(runs.find_checkpoint(run))["callbacks"]["EMA"]["shadow"]
    moved = {k: float((v - ema[k]).abs().max()) for k, v in weights(tuned).items()}
    still = {k for k in moved if ".inc." in k or ".maps." in k}
    assert still and all((moved[k] == 0) == (k in still) for k in moved)
    free = max(v for k, v in moved.items() if ".ups." in k)
    assert max(v for k, v in moved.items() if ".outc." in k) == pytest.approx(free / 10, rel=0.02)


def test_parameter_groups_have_the_scaled_rates_and_all_weights_once():
    mine = model()
    mine.lr_scales = initial.scaled(mine, "condition=10, downs.0.1.*=0.1, downs=0.5")
    initial.freeze(mine, "outc")
    groups = System.groups(mine, 1e-3)
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 1e-4, 5e-4, 1e-2])
    numbers = [id(p) for g in groups for p in g["params"]]
    assert len(numbers) == len(set(numbers)) == len([p for p in mine.parameters() if p.requires_grad])
    assert len(System.groups(model(), 1.0)) == 1


@pytest.mark.parametrize("words, said", [
    (["--init", "nowhere"], "nowhere: no such checkpoint"),
    (["--init", "zoo:digits", "--init_weights", "both"], "--init_weights both: expected ema or raw"),
    (["--freeze", "dawns"], "--freeze dawns: no weight has such a name; did you mean 'downs'?"),
    (["--freeze", "*"], "nothing is left to train"),
    (["--lr_scale", "ups"], "--lr_scale ups: expected PATTERN=FACTOR"),
    (["--lr_scale", "ups=-1"], "expected PATTERN=FACTOR"),
])  # fmt: skip
def test_fine_tuning_errors_state_the_remedy(words, said, tmp_path, capsys):
    assert main(["fit", "-c", CONFIG, "--out", str(tmp_path / "runs"), "--trainer.max_steps", "1", *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()
