"""Training with a time budget, under a simulated clock."""

from dataclasses import replace
from itertools import count

import pytest
import pytorch_lightning as pl
import torch
import yaml

from diffusion.cli import main
from diffusion.data import Digits
from diffusion.nets import ResidualMLP
from diffusion.samplers import DDIM
from diffusion.training.callbacks import Gif, Samples, budget
from diffusion.training.callbacks.budget import Budget, seconds
from diffusion.training.pace import smallest
from diffusion.training.systems import Diffusion, base


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("0.5h", 1800), ("2", 120)])
def test_times_are_parsed_to_seconds(text, wanted):
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "0m", "m", "20 minutes", "-5m", "1d"])
def test_invalid_times_are_refused(text):
    with pytest.raises(ValueError, match="wanted a time such as 90s, 20m or 1h30m"):
        seconds(text)


class Clock(pl.Callback):
    """A clock on which training step n takes `step(n)` seconds and a step of `Slow` half a second."""

    def __init__(self, monkeypatch, step):
        self.now, self.step = 0.0, step
        monkeypatch.setattr(budget.time, "perf_counter", lambda: self.now)

    def on_train_batch_end(self, trainer, *args):
        self.now += self.step(trainer.global_step)


class Slow(DDIM):
    """A sampler whose steps take half a second of the clock."""

    def step(self, *args):
        self.clock.now += 0.5
        return super().step(*args)


def model(decay="cosine", steps=4):
    torch.manual_seed(0)
    return Diffusion(ResidualMLP(1, (8, 8), 8, 1), decay=decay, sampler=DDIM(steps), shape=(1, 8, 8))


def train(tmp_path, keeper, clock, diffusion, *more):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=10**9, callbacks=[*more, clock, keeper], enable_checkpointing=False,
        logger=pl.loggers.TensorBoardLogger(tmp_path), enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(diffusion, Digits(batch_size=16, limit=320))
    return trainer


@pytest.mark.parametrize(
    ("step", "low", "high"),
    [
        (lambda n: 1.0, 99, 101),
        (lambda n: 1.0 if n < 50 else 2.0, 95, 105),  # the machine becomes slower halfway
        (lambda n: 3.0 if n < 10 else 0.5, 95, 105),  # or faster near the start
        (lambda n: 1.0 + 9 * (n % 10 == 9), 90, 110),  # or every tenth step includes a validation
    ],
)
def test_training_ends_within_its_budget(tmp_path, monkeypatch, step, low, high):
    clock, diffusion = Clock(monkeypatch, step), model()
    keeper = Budget(100, 1.3, 0.0)
    rates = []
    monkeypatch.setattr(base, "lr_factor", lambda *args, f=base.lr_factor: rates.append(f(*args)) or rates[-1])
    train(tmp_path, keeper, clock, diffusion)
    assert low <= clock.now <= high
    assert (
        rates[-1] < 0.01 and max(b - a for a, b in zip(rates, rates[1:], strict=False)) < 0.25
    )  # rises only with a new plan


def test_budget_includes_the_final_pictures(tmp_path, monkeypatch, capsys):
    clock, diffusion = Clock(monkeypatch, lambda n: 1.0), model()
    sampler = Slow(40)
    sampler.clock = clock
    diffusion.pipeline = replace(diffusion.pipeline, sampler=sampler)
    train(tmp_path, Budget(100, 1.0, 0.0), clock, diffusion, Samples(0, 4), Gif(4))
    assert 98 <= clock.now <= 102  # 40 seconds of it are for the pictures
    assert len(list(tmp_path.rglob("*.gif"))) == 1
    assert "budget: the final grid and GIF take 0:40 of it" in capsys.readouterr().out


def test_budget_counts_the_time_before_a_resumption(monkeypatch):
    clock = Clock(monkeypatch, lambda n: 1.0)
    first = Budget(100, 1.0, 0.0)
    clock.now = 60.0
    second = Budget(100, 1.0, clock.now)
    second.load_state_dict(first.state_dict())
    clock.now += 10
    assert second.spent == 70


def test_smallest_is_the_smallest_batch_near_the_best_speed():
    assert smallest([(32, 1.0), (64, 1.0), (128, 2.0), (16, 0.9)]) == (64, 1.0)  # images/s: 32, 64, 64, 18
    assert smallest([(16, 0.5), (64, 1.6), (256, 6.5)]) == (16, 0.5)  # a CPU: 32, 40, 39


@pytest.mark.slow
def test_fit_with_a_budget_chooses_and_keeps_its_batch_size(tmp_path, capsys, monkeypatch):
    """On a clock that advances by 20 ms each time it is read: the choice does not depend on the machine."""
    now = count(step=0.02)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(now))
    argv = [
        "fit", "-c", "configs/digits.yaml", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
        "--gif.n", "1", "--samples.n", "4", "--model.sampler.steps", "2", "--out", str(tmp_path),
        "--trainer.accelerator", "cpu", "--model.warmup", "1000000",
    ]  # fmt: skip
    assert main([*argv, "--budget", "4s"]) == 0
    said = capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "digits" / "version_0" / "config.yaml").read_text())
    batch, lr, warmup = config["data"]["init_args"]["batch_size"], config["model"]["lr"], config["model"]["warmup"]
    assert warmup < 100_000  # a tenth of the expected steps
    assert f"budget 0:04: batch {batch}, lr {lr:.2g}" in said and "budget 0:04, spent 0:" in said
    assert lr == pytest.approx(0.003 * (batch / 64) ** 0.5)
    assert config["trainer"]["precision"] in ("32-true", "bf16-mixed") and config["trainer"]["max_epochs"] == -1
    assert main([*argv, "--budget", "8s", "--resume", "auto", "--data.batch_size", "32"]) == 0  # the run's is kept
    again = yaml.safe_load((tmp_path / "digits" / "version_0" / "config.yaml").read_text())
    assert again["data"]["init_args"]["batch_size"] == batch
    assert again["model"]["lr"] == lr and again["model"]["warmup"] == warmup
    capsys.readouterr()
    assert main([*argv, "--budget", "4s", "--resume", "auto"]) == 0
    assert "nothing left to train; raise --budget to continue" in capsys.readouterr().out
    assert main(["fit", "-c", "configs/features_digits.yaml", "--budget", "1m", "--out", str(tmp_path)]) == 2
    assert "budget: Classifier requires a fixed number of epochs" in capsys.readouterr().err
