"""Evaluation during training: its schedule, its files, and the checkpoint it keeps."""

import json
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion.cli import main
from diffusion.metrics.base import Figure
from diffusion.support.runs import find_checkpoint
from diffusion.training.callbacks import Evaluation

TINY = [
    "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "3",
    "--trainer.check_val_every_n_epoch", "3", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
    "--model.sampler.steps", "3", "--data.limit", "320", "--samples.every_n_epochs", "0", "--gif.n", "1",
]  # fmt: skip


def figure(value, better="low", name="frechet"):
    return Figure(name, value, value - 1, value + 1, 0, value, 10, better)


@pytest.mark.slow
def test_fit_with_evaluations_writes_figures_curves_and_best(tmp_path, monkeypatch):
    """`diffusion fit` writes one line per figure, curves, and best.ckpt, from which runs are not resumed."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "2",
                 "--trainer.accelerator", "cpu"]) == 0  # fmt: skip
    options = ["--evaluation.every_n_epochs", "1", "--evaluation.n", "40", "--evaluation.budget", "100"]
    assert main(["fit", *TINY, *options, "--out", str(tmp_path)]) == 0
    run = tmp_path / "digits" / "version_0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(f["metric"], f["epoch"]) for f in lines] == [(m, e) for e in range(3) for m in ("frechet", "consistency")]
    first = {"weights": "ema", "sampler": "DDIM", "steps": 3, "n": 40, "step": 5, "seed": 1, "scale": 1.1}
    assert first.items() <= lines[0].items() and lines[0]["extractor"].startswith("DigitsNet-")
    curve = EventAccumulator(str(run)).Reload().Scalars("eval/frechet")
    assert [(e.step, pytest.approx(e.value)) for e in curve] == [(5 * (k + 1), lines[2 * k]["value"]) for k in range(3)]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    kept = best["callbacks"]["Evaluation"]["record"]
    assert kept["value"] == next(f["value"] for f in lines if f["metric"] == "frechet" and f["step"] == kept["step"])
    assert best["global_step"] == kept["step"] and find_checkpoint(run).name == "last.ckpt"


def test_best_improves_beyond_the_interval_of_the_previous_best():
    callback = Evaluation(every_n_epochs=1)
    values = {10.0: True, 9.5: False, 8.9: True, 12.0: False, 8.0: False, 7.8: True}
    assert [callback.improves([figure(v)], 0) for v in values] == list(values.values())
    callback = Evaluation(every_n_epochs=1, best="consistency")
    assert [callback.improves([figure(v, "high", "consistency")], 0) for v in (1.0, 1.5, 2.1)] == [True, False, True]
    again = Evaluation(every_n_epochs=1, best="consistency")
    again.load_state_dict(callback.state_dict())
    assert again.record["value"] == 2.1 and not again.improves([figure(3.0, "high", "consistency")], 0)
    assert not callback.improves([figure(5.0)], 0)


def test_evaluations_stay_within_their_budget(monkeypatch):
    """Each evaluation takes 10 s and the budget is a tenth: one per 100 s of training, except the first."""
    now, measured = [0.0], []
    monkeypatch.setattr("diffusion.training.callbacks.evaluation.time.perf_counter", lambda: now[0])
    callback = Evaluation(every_n_epochs=2, best="", budget=0.1)

    def measure(trainer, module):
        measured.append(trainer.current_epoch)
        now[0] += 10

    monkeypatch.setattr(callback, "measure", measure)
    strategy = SimpleNamespace(broadcast=lambda x: x)
    trainer = SimpleNamespace(fast_dev_run=False, log_dir="x", strategy=strategy, current_epoch=0, global_step=0)
    callback.on_train_start(trainer, None)
    for trainer.current_epoch in range(40):
        now[0] += 20
        callback.on_train_epoch_end(trainer, None)
    assert measured == [1, 9, 15, 19, 25, 29, 35, 39]
    assert callback.spent == 80


def test_evaluation_is_off_by_default_and_refuses_bad_settings():
    callback = Evaluation()
    callback.on_train_epoch_end(SimpleNamespace(fast_dev_run=False, log_dir="x"), None)
    for wrong in ({"n": 1}, {"budget": 0}, {"every_n_epochs": -1}, {"metrics": ["nope"]},
                  {"every_n_epochs": 1, "best": "kid"}):  # fmt: skip
        with pytest.raises(ValueError):
            Evaluation(**wrong)
