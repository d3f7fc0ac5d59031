"""Extensions: one part of each kind, from a user's module, by name on the command line.

The module and the commands are those of CONTRIBUTING.md; a distribution of times and a distance are added here.
"""

import gc
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import Diffusion, Pipeline
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.noise.draws import FixedDraws
from diffusion.samplers import DDIM

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text().split("## Your own parts")[1].split("\n## ")[0]
MORE = '''
from diffusion.noise import Times
from diffusion.loss.weights import Distance


class Late(Times):
    """The noisier half of the times only."""

    def __call__(self, u, schedule):
        return schedule.quantile((1 + u) / 2)


class Halved(Distance):
    """error^2 / 2."""

    def __call__(self, error):
        return error.square() / 2
'''
TINY = (
    "--out lightning_logs --trainer.accelerator cpu --trainer.precision 32-true --trainer.max_epochs 1 "
    "--trainer.check_val_every_n_epoch 1 --trainer.log_every_n_steps 1 --model.net.widths [8,16] "
    "--model.net.attention 1 --model.sampler.steps 4 --data.limit 64 --samples.n 4 --gif.n 4"
).split()


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.S).group(1)


COMMANDS = {line.split()[1]: shlex.split(line)[1:] for line in block("bash").splitlines()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's working directory: my.py, a link to configs/, and the run of the documented command."""
    path = tmp_path_factory.mktemp("user")
    (path / "my.py").write_text(block("python") + MORE)
    (path / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
        assert main([*COMMANDS["fit"], *TINY]) == 0
        yield path
    del sys.modules["my"]
    gc.collect()  # so that later tests do not find these classes among the subclasses


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def first_loss(run):
    return EventAccumulator(str(run)).Reload().Scalars("train/loss")[0].value


def pictures(*options):
    argv = COMMANDS["sample"]
    assert main([*argv, "--n", "4", "--steps", "7", *options]) == 0
    return np.load(argv[argv.index("--out") + 1])["images"].astype(int)


def test_a_checkpoint_rebuilds_the_parts(folder):
    run = folder / "lightning_logs" / "digits" / "version_0"
    plain = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert plain["schedule"]["class_path"] == "my.Arc" and plain["target"]["class_path"] == "my.Half"
    assert plain["objective"]["init_args"]["weight"] == {"class_path": "my.Scaled", "init_args": {"factor": 6.0}}
    schedule = Pipeline.load(run).denoiser.schedule
    t = torch.tensor([0.2, 0.5, 0.9]).double()
    angle = t * math.pi / 2
    torch.testing.assert_close(schedule.level(t).ratio, angle.tan())
    f, g2 = schedule.sde(t)  # everything that follows from alpha and sigma
    torch.testing.assert_close(f, -math.pi / 2 * angle.tan())
    torch.testing.assert_close(g2, math.pi * angle.tan())
    torch.testing.assert_close(schedule.time(schedule.level(t).log_snr), t)


def test_a_new_sampler_follows_its_formula():
    """Its step reimplements DDIM's: the same images for the same checkpoint and seed."""
    mine = pictures()  # --sampler my.Walk --fresh 0.5
    expected = Pipeline.load("lightning_logs/digits").sample(4, seed=0, sampler=DDIM(7, eta=0.5))
    values = (expected.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5  # of 255, not rounded
    assert np.abs(mine - values).max() < 0.51
    assert np.abs(pictures("--fresh", "0") - mine).max() > 10
    assert np.array_equal(pictures("--sampler", "Walk"), mine)  # the short name, now that the module is imported


def test_validation_measures_a_new_target(capsys):
    """val/loss is the error of (x_0 - eps) / 2, by hand."""
    assert main(COMMANDS["validate"]) == 0
    shown = float(capsys.readouterr().out.split("val/loss ")[1].split()[0])
    model, (images, y) = Pipeline.load("lightning_logs/digits"), Digits(limit=64).arrays("test")
    x0, draws = images / 127.5 - 1, FixedDraws(0, torch.arange(len(images)))
    t = model.denoiser.schedule.quantile(draws.uniform(len(x0)))
    alpha, sigma = ((t * math.pi / 2).cos(), (t * math.pi / 2).sin())
    eps = draws.normal(x0)
    x = (alpha.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * eps).float()
    with torch.no_grad():
        said = model.denoiser.net(x, 1000 * t.float(), y)
    assert shown == pytest.approx(float((said - (x0 - eps) / 2).square().mean()), rel=1e-5)


def test_a_new_weight_and_distance_change_the_loss_by_their_factors(folder):
    """The first step of the documented run has 6 times the loss of Unit; with half of the square, 3 times."""
    plain = [a for a in COMMANDS["fit"] if "weight" not in a and a not in ("Scaled", "6")]
    for name, options in {"unit": [], "half": [*COMMANDS["fit"][-4:], "--model.objective.distance", "Halved"]}.items():
        assert main([*plain, *TINY, "--experiment", name, *options]) == 0
    six, one, three = (first_loss(folder / "lightning_logs" / k / "version_0") for k in ("digits", "unit", "half"))
    assert one > 0.1 and six / one == pytest.approx(6, rel=1e-5) and three / one == pytest.approx(3, rel=1e-5)


def test_a_new_distribution_of_times_limits_training_to_its_times(folder):
    options = ["--model.objective.times", "my.Late", "--experiment", "late"]
    assert main([*COMMANDS["fit"], *TINY, *options]) == 0
    model = Diffusion.load("lightning_logs/late")
    cond = model.pipeline.condition(torch.zeros(500).long())
    t = model.objective(model.denoiser, torch.zeros(500, 1, 8, 8), cond).t.t
    assert 0.5 < float(t.min()) < 0.51 and 0.99 < float(t.max()) < 1


def test_film_works_with_the_new_parts(folder):
    assert main([*COMMANDS["film"], "--n", "4", "--steps", "6"]) == 0
    assert Image.open(folder / "mine.gif").n_frames == 7  # the noise, and six steps


@pytest.mark.slow
def test_the_console_script_finds_the_module_too(folder, tmp_path):
    """Python puts the script's own folder on sys.path, not the current one."""
    (tmp_path / "script.py").write_text("import sys\nfrom diffusion.cli import main\nsys.exit(main())\n")
    argv = [*COMMANDS["sample"][:-1], "console.npz", "--n", "4", "--steps", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(tmp_path / "script.py"), *argv], env=environment, cwd=folder, check=True)
    assert np.abs(np.load(folder / "console.npz")["images"].astype(int) - pictures()).max() <= 1


def test_missing_modules_and_classes_are_reported_in_one_line(tmp_path, folder, monkeypatch, capsys):
    run = str(folder / "lightning_logs" / "digits")
    for name, word in (("my.Walkk", "module 'my' has no attribute 'Walkk'"), ("my.Arc", "my.Arc is not a subclass")):
        assert main(["sample", run, "--sampler", name]) == 2
        assert word in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    assert main(["sample", run]) == 2
    assert (
        "No module named 'my'" in (said := capsys.readouterr().err)
        and "folder" in said
        and not list(tmp_path.iterdir())
    )
