"""`diffusion fit` and `validate`: run directories, configuration, resuming."""

import shutil

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import diffusion
from diffusion.cli import main
from diffusion.support import runs
from diffusion.training import precision

from .conftest import TINY


def test_run_directory_has_all_documented_files(tiny):
    drawn = "watch.png"  # of trainings of 20 s or more, which this is on a slow machine
    assert {p.name for p in tiny.iterdir() if "tfevents" not in p.name and p.name != drawn} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "hparams.yaml",
        "samples",
        "watch.csv",
    }
    assert {p.name for p in (tiny / "samples").iterdir()} == {"denoising.gif", "step00000005.png", "step00000010.png"}
    assert {p.name for p in (tiny / "checkpoints").iterdir()} == {"last.ckpt", "step00000009.ckpt", "step00000010.ckpt"}
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["widths"] == [8, 16] and config["ema"]["decay"] == 0.999


def test_properties_of_the_data_reach_the_network(tiny):
    hparams = torch.load(tiny / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert hparams["net"]["init_args"]["num_classes"] == 10 and hparams["shape"] == [1, 8, 8]
    assert hparams["class_names"] == list("0123456789")


def test_a_second_run_gets_a_folder_of_its_own(tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "digits" / "version_0")
    assert main(["fit", *TINY, "--out", str(tmp_path), "--trainer.max_epochs", "1"]) == 0
    assert (tmp_path / "digits" / "version_1" / "checkpoints" / "last.ckpt").exists()
    said = capsys.readouterr().out
    for command in ("diffusion sample", "diffusion film", "diffusion fit", "tensorboard --logdir"):
        assert command in said


def test_resume_auto_continues_in_the_same_folder_and_curve(tiny, tmp_path, capsys):
    run = tmp_path / "digits" / "version_0"
    shutil.copytree(tiny, run)
    assert main(["fit", *TINY, "--out", str(tmp_path), "--resume", "auto", "--trainer.max_epochs", "4"]) == 0
    assert "resuming from" in (said := capsys.readouterr().out) and "step 10, epoch 2" in said
    assert not (tmp_path / "digits" / "version_1").exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 20
    steps = [e.step for e in EventAccumulator(str(run)).Reload().Scalars("train/loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 19, steps


def test_curves_have_no_duplicates_after_a_crash(tiny, tmp_path):
    """Steps that were logged after the last checkpoint and are repeated appear once."""
    run = tmp_path / "digits" / "version_0"
    assert (
        main(["fit", *TINY, "--out", str(tmp_path), "--trainer.log_every_n_steps", "1", "--checkpoint.keep", "9"]) == 0
    )
    (run / "checkpoints" / "last.ckpt").unlink()
    for step in (6, 9, 10):  # as if it had been killed between steps 3 and 6
        (run / "checkpoints" / f"step{step:08d}.ckpt").unlink()
    assert main(["fit", *TINY, "--out", str(tmp_path), "--trainer.log_every_n_steps", "1", "--resume", "auto"]) == 0
    events = EventAccumulator(str(run)).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(10))


def test_resume_auto_starts_a_run_when_there_is_none(tmp_path, capsys):
    assert main(["fit", *TINY, "--out", str(tmp_path), "--resume", "auto", "--trainer.max_epochs", "1"]) == 0
    assert "starting a new run" in capsys.readouterr().out


def test_resume_auto_skips_a_broken_file(tiny, tmp_path, capsys):
    run = tmp_path / "digits" / "version_0"
    shutil.copytree(tiny, run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert main(["fit", *TINY, "--out", str(tmp_path), "--resume", "auto", "--trainer.max_epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert "skipped" in said and "truncated" in said and "step00000010.ckpt: step 10" in said


def test_resuming_a_finished_run_reports_that_it_is_finished(tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "digits" / "version_0")
    assert main(["fit", *TINY, "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert "nothing left to train" in capsys.readouterr().out


def test_fit_trains_an_unconditional_model(tmp_path, capsys):
    assert main(["fit", *TINY, "--out", str(tmp_path), "--data.labels", "false", "--trainer.max_epochs", "1"]) == 0
    run = str(tmp_path / "digits")
    assert main(["sample", run, "--n", "4", "--out", str(tmp_path / "a.png")]) == 0
    assert main(["sample", run, "--n", "4", "--label", "3", "--out", str(tmp_path / "b.png")]) == 2
    assert main(["sample", run, "--n", "4", "--scale", "2", "--out", str(tmp_path / "b.png")]) == 2
    assert "trained without labels" in capsys.readouterr().err and not (tmp_path / "b.png").exists()


def test_validate_prints_the_last_value_of_the_curve(tiny, capsys):
    assert main(["validate", str(tiny)]) == 0
    shown = float(capsys.readouterr().out.split("val/loss ")[1].split()[0])
    curve = EventAccumulator(str(tiny)).Reload().Scalars("val/loss")
    assert shown == pytest.approx(curve[-1].value, abs=2e-6)
    assert main(["validate", str(tiny), "--weights", "raw"]) == 0
    assert float(capsys.readouterr().out.split("val/loss ")[1].split()[0]) != shown


@pytest.mark.parametrize("options", [["RUN", "--weights=raw"], ["--weights", "raw", "RUN"], ["--weights=raw", "RUN"],
                                     ["--data.batch_size", "100", "--weights", "raw", "RUN"],
                                     ["RUN", "--weights", "raw", "--data.batch_size=100"]])  # fmt: skip
def test_validate_takes_its_options_in_any_order(options, tiny, capsys):
    assert main(["validate", *(str(tiny) if word == "RUN" else word for word in options)]) == 0
    said = capsys.readouterr().out
    assert "raw weights, 360 images" in said
    raw = diffusion.validate(tiny, "raw")
    assert float(said.split("val/loss ")[1].split()[0]) == pytest.approx(raw, abs=2e-6)
    assert raw != diffusion.validate(tiny)


def test_validate_refuses_unknown_options(tiny, capsys):
    assert main(["validate", str(tiny), "--weights", "best"]) == 2
    assert "invalid choice: 'best'" in capsys.readouterr().err
    assert main(["validate", str(tiny), "--modle.lr", "1"]) == 2
    assert "there is no option '--modle.lr'" in capsys.readouterr().err
    assert main(["validate"]) == 2
    assert "required: run" in capsys.readouterr().err


@pytest.mark.slow
def test_measured_precision_is_chosen_once_per_run(tmp_path, capsys, monkeypatch):
    found = precision.Choice("bf16-mixed", "contiguous", "said so")
    monkeypatch.setattr(precision, "measured", lambda *args: found)
    argv = ["fit", *TINY, "--out", str(tmp_path), "--precision", "fastest", "--trainer.max_epochs"]
    assert main([*argv, "1"]) == 0
    assert "precision bf16-mixed (said so); run:" in capsys.readouterr().out

    def never(*args):
        raise AssertionError("a resumed run measures nothing")

    monkeypatch.setattr(precision, "measured", never)
    assert main([*argv, "2", "--resume", "auto"]) == 0
    said = capsys.readouterr().out
    assert "precision bf16-mixed; run:" in said and "changed: trainer.precision" not in said
    config = yaml.safe_load((tmp_path / "digits" / "version_0" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "bf16-mixed" and config["layout"] == "contiguous"
    assert config["precision"] == ""
    assert main([*argv[:-3], "--trainer.max_epochs", "3", "--resume", "auto", "--precision", "32-true"]) == 0
    assert "changed: trainer.precision: bf16-mixed -> 32-true" in capsys.readouterr().out
    assert main([*argv[:-3], "--precision", "32-true", "--trainer.precision", "bf16-mixed"]) == 2
    assert "--precision 32-true and --trainer.precision bf16-mixed: give one of them" in capsys.readouterr().err


def test_recomputation_leaves_the_weights_unchanged(tmp_path):
    """The weights are the same to the bit, with dropout."""
    states = []
    for name, value in (("a", "false"), ("b", "true")):
        options = ["--recompute", value, "--model.net.dropout", "0.1", "--out", str(tmp_path / name)]
        assert main(["fit", *TINY, "--trainer.max_epochs", "1", "--trainer.precision", "32-true", *options]) == 0
        states.append(runs.read_checkpoint(runs.find_checkpoint(tmp_path / name / "digits"))["state_dict"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0]) and list(states[0]) == list(states[1])


def test_an_optimizer_is_chosen_by_name_and_kept_on_resuming(tmp_path, capsys):
    words = ["fit", *TINY, "--out", str(tmp_path), "--trainer.max_epochs", "1", "--model.decay", "wsd"]
    muon = ["--model.optimizer", "Muon", "--model.optimizer.momentum", "0.9"]
    assert main([*words, *muon]) == 0
    run = tmp_path / "digits" / "version_0"
    assert main([*words, *muon, "--resume", str(run), "--trainer.max_epochs", "2"]) == 0
    assert "changed: trainer.max_epochs" in capsys.readouterr().out
    assert main([*words, "--resume", str(run), "--trainer.max_epochs", "3"]) == 2
    assert "model.optimizer: Muon -> AdamW" in capsys.readouterr().err
    assert main([*words, "--model.optimizer", "Moun"]) == 2
    assert "did you mean 'Muon'?" in capsys.readouterr().err


def test_augmentation_is_linked_to_the_network_and_refused_for_classes_it_changes(tmp_path, capsys):
    words = ["fit", *TINY, "--out", str(tmp_path), "--trainer.max_epochs", "1", "--model.augment", "NonLeaking"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "x_flip, y_flip, rotate would change the classes of Digits; leave it out" in said.err
    assert main([*words, "--model.augment.changes", "[scale,shift]"]) == 0
    run = tmp_path / "digits" / "version_0"
    assert (
        runs.read_checkpoint(runs.find_checkpoint(run))["hyper_parameters"]["net"]["init_args"]["image_channels"] == 3
    )
    for verb in (["sample", "--n", "2", "--out", str(tmp_path / "x.png")], ["validate"], ["describe"]):
        assert main([verb[0], str(run), *verb[1:]]) == 0
