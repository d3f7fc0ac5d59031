"""`diffusion.fit` and `diffusion.validate`: the options of the command line as Python keywords."""

import signal

import pytest
import torch
import yaml

import diffusion
from diffusion.cli import main
from diffusion.support import runs
from diffusion.training.api import words

TINY = {
    "trainer.accelerator": "cpu", "trainer.check_val_every_n_epoch": 1, "trainer.limit_val_batches": 1,
    "model.net.widths": [8, 16], "model.net.attention": 1, "model.sampler.steps": 2, "samples.n": 4,
    "samples.every_n_epochs": 0, "gif.n": 1, "gif.frames": 2, "data.limit": 320, "diagnostics.images": 0,
}  # fmt: skip


def test_settings_become_command_line_arguments():
    settings = {"model.lr": 1e-3, "model.net.widths": [8, 16], "data.labels": False, "out": "a b", "x": None}
    assert words(settings) == [
        "--model.lr=0.001", "--model.net.widths=[8, 16]", "--data.labels=false", "--out=a b", "--x=null",
    ]  # fmt: skip


def test_fit_trains_as_the_command_does(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    run = diffusion.fit(
        "configs/digits.yaml", max_epochs=1, precision="32-true", seed=3, out=tmp_path, experiment="mine", settings=TINY
    )
    assert run == tmp_path / "mine" / "version_0" and signal.getsignal(signal.SIGINT) is before
    assert "5 steps, " in (said := capsys.readouterr().out) and "next:" not in said
    argv = ["-c", "configs/digits.yaml", *words(TINY), "--trainer.max_epochs", "1", "--trainer.precision", "32-true"]
    assert main(["fit", *argv, "--seed_everything", "3", "--out", str(tmp_path), "--experiment", "theirs"]) == 0
    ours, theirs = (runs.read_checkpoint(runs.find_checkpoint(tmp_path / n))["state_dict"] for n in ("mine", "theirs"))
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    assert diffusion.fit("configs/digits.yaml", max_epochs=2, precision="32-true", seed=3, out=tmp_path,
                         experiment="mine", resume="auto", settings=TINY) == run  # fmt: skip
    assert runs.newest_step(run) == 10
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2 and config["seed_everything"] == 3


@pytest.mark.parametrize("options, error, message", [
    ({"settings": {"model.lr": "much"}}, ValueError, "model.lr"),
    ({"settings": {"modell.lr": 1}}, ValueError, "modell"),
    ({"data": "Digitz"}, ValueError, "Digitz"),
    ({"max_epochs": "many"}, ValueError, "max_epochs"),
    ({"budget": "soon"}, ValueError, "wanted a time such as 90s"),
    ({"resume": "nowhere"}, FileNotFoundError, "nowhere: no such checkpoint"),
    ({"config": "configs/nothing.yaml"}, FileNotFoundError, "nothing.yaml"),
])  # fmt: skip
def test_fit_refuses_in_one_line(options, error, message, tmp_path):
    given = {"config": "configs/digits.yaml", "out": tmp_path / "runs"} | options
    with pytest.raises(error, match=message) as raised:
        diffusion.fit(**given)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_validate_takes_a_run_and_settings(tmp_path):
    run = diffusion.fit("configs/digits.yaml", max_epochs=1, out=tmp_path, settings=TINY)
    loss = diffusion.validate(run, settings={"trainer.limit_val_batches": None})
    assert 0.1 < loss < 3 and loss == diffusion.validate(run, settings={"trainer.limit_val_batches": 1.0})
    assert diffusion.validate(run) != loss  # the run's own limit: one batch
    with pytest.raises(ValueError, match="modell"):
        diffusion.validate(run, settings={"modell.lr": 1})
    with pytest.raises(FileNotFoundError):
        diffusion.validate(tmp_path / "none")
