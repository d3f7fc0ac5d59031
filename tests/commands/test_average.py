"""`diffusion average`: averages of the weights whose width is chosen after training."""

import json
import shutil

import pytest
import torch

import diffusion
from diffusion.cli import main
from diffusion.denoiser import averages
from diffusion.support import runs
from diffusion.training.callbacks import PostHoc
from tests.commands.conftest import TINY


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of ten steps with four snapshots of two averages."""
    out = tmp_path_factory.mktemp("kept")
    assert main(["fit", *TINY, "--posthoc.snapshots", "4", "--posthoc.storage", "fp32", "--out", str(out)]) == 0
    return out / "digits" / "version_0"


@pytest.fixture
def run(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "digits" / "version_0")
    return tmp_path / "digits" / "version_0"


def test_a_run_prints_the_disk_use_of_its_snapshots_and_writes_them(tmp_path, capsys):
    assert main(["fit", *TINY, "--posthoc.snapshots", "4", "--out", str(tmp_path), "--trainer.max_epochs", "1"]) == 0
    said, run = capsys.readouterr().out, tmp_path / "digits" / "version_0"
    found = averages.snapshots(run)
    assert [s.step for s in found] == [2, 2, 3, 3, 4, 4, 5, 5] and found[-1].images == 320
    numbers = sum(v.numel() for v in runs.open_checkpoint(found[0].path).values())
    assert f"4 snapshots of 2, {4 * 2 * 2 * numbers / 1e6:.1f} MB in {run}/averages" in said


def test_the_written_checkpoint_is_read_by_other_commands(run, tmp_path, capsys):
    assert main(["average", str(run)]) == 0
    assert "8 snapshots" in capsys.readouterr().out
    assert main(["average", str(run), "--sigma_rel", "0.15", "--step", "8"]) == 0
    path = run / "checkpoints" / "sigma_rel0.15-step8-average.ckpt"
    assert f"{path}: sigma_rel 0.15 at step 8, of 6 snapshots" in capsys.readouterr().out
    assert runs.find_checkpoint(run).name == "last.ckpt" and runs.newest_step(run) == 10
    assert main(["sample", str(path), "--n", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert main(["validate", str(path)]) == 0
    assert main(["export", str(path), "--to", str(tmp_path / "x.safetensors")]) == 0
    assert main(["sample", str(path), "--n", "2", "--weights", "raw"]) == 2
    assert "averaged weights only" in capsys.readouterr().err
    assert main(["fit", *TINY, "--resume", str(path), "--out", str(tmp_path / "more"), "--trainer.max_steps", "9"]) == 0


def test_the_average_of_a_stored_width_is_the_stored_average(run):
    path = diffusion.average(run, 0.1)
    stored = [s for s in averages.snapshots(run) if s.sigma_rel == 0.1][-1]
    read, shadow = runs.read_checkpoint(path)["state_dict"], runs.open_checkpoint(stored.path)
    assert shadow.keys() < read.keys() | {"x"}
    for name, value in shadow.items():
        torch.testing.assert_close(read[name], value, rtol=1e-5, atol=1e-6)


def test_a_run_continued_elsewhere_takes_its_snapshots_along(run, tmp_path):
    """From an older checkpoint: those up to its step, and the later ones anew, to the bit."""
    older = run / "checkpoints" / "step00000009.ckpt"
    out = tmp_path / "other"
    options = ["--posthoc.snapshots", "4", "--posthoc.storage", "fp32", "--out", str(out)]
    assert main(["fit", *TINY, *options, "--resume", str(older)]) == 0
    mine = out / "digits" / "version_0" / "averages"
    assert {p.name: p.read_bytes() for p in mine.iterdir()} == {
        p.name: p.read_bytes() for p in (run / "averages").iterdir()
    }


def test_snapshots_are_removed_on_request(run, capsys):
    assert main(["average", str(run), "--clean"]) == 0
    assert "removed" in capsys.readouterr().out and not (run / "averages").exists()
    assert main(["average", str(run), "--sigma_rel", "0.1"]) == 2
    assert "no snapshots of averages; train with --posthoc.snapshots 16" in capsys.readouterr().err


def test_evaluate_compares_widths(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "1",
                 "--trainer.accelerator", "cpu"]) == 0  # fmt: skip
    words = ["evaluate", str(run), "--n", "20", "--steps", "2", "--metrics", "frechet"]
    assert main([*words, "--sweep", "sigma_rel=.05,.1"]) == 0
    said = capsys.readouterr().out
    assert "sigma_rel=0.05" in said
    assert "average RUN --sigma_rel" in said
    files = [json.loads(p.read_text()) for p in (run / "evaluation").glob("step*.json")]
    found = {r["setting"]["sigma_rel"]: r["figures"][0]["value"] for r in files}
    assert set(found) == {0.05, 0.1} and found[0.05] != found[0.1]
    path = diffusion.average(run, 0.1)
    assert main([*words[:1], str(path), *words[2:]]) == 0
    (own,) = (
        r for p in (run / "evaluation").glob("step*.json")
        if "sigma_rel" not in (r := json.loads(p.read_text()))["setting"]
    )  # fmt: skip
    assert own["figures"][0]["value"] == pytest.approx(found[0.1], rel=1e-5)
    assert main([*words, "--sweep", "sigma_rel=.05", "--weights", "raw"]) == 2
    assert main([*words, "--sweep", "sigma_rel=.5"]) == 2
    assert "wanted a width in" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    ({"snapshots": -1}, "snapshots of at least 0"), ({"widths": (0.1, 0.1)}, "different widths"),
    ({"widths": ()}, "different widths"), ({"widths": (0.5,)}, "wanted a width in"), ({"storage": "int8"}, "int8"),
])  # fmt: skip
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PostHoc(**options)


def test_a_training_without_an_end_has_no_snapshots(tmp_path, capsys):
    words = ["fit", *TINY, "--posthoc.snapshots", "4", "--out", str(tmp_path)]
    assert main([*words, "--trainer.max_epochs", "-1", "--model.decay", "constant"]) == 2
    assert "posthoc.snapshots are spread over the training, which has no end" in capsys.readouterr().err
