"""Resumption: messages, refusals, files, and folders that cannot be written."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion.cli import main
from diffusion.support import runs
from diffusion.support.lock import Lock, held
from diffusion.training import pace, precision
from diffusion.training.callbacks import Checkpoint
from diffusion.training.resume import Start, claim
from diffusion.training.systems import Diffusion

REPO = Path(__file__).resolve().parents[2]
TINY = [
    "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2",
    "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "1",
    "--model.net.widths", "[8,16]", "--model.net.attention", "1", "--model.sampler.steps", "2", "--samples.n", "4",
    "--samples.every_n_epochs", "0", "--gif.n", "1", "--gif.frames", "2", "--data.limit", "320",
    "--checkpoint.every_n_steps", "2", "--diagnostics.images", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["fit", *TINY, "--out", str(out)]) == 0
    return out / "digits" / "version_0"


@pytest.fixture
def run(done, tmp_path):
    shutil.copytree(done, tmp_path / "digits" / "version_0")
    return tmp_path / "digits" / "version_0"


def resume(run, *options, what="auto", code=0):
    assert main(["fit", *TINY, "--out", str(run.parent.parent), "--resume", str(what), *options]) == code


def test_resumed_run_reports_what_is_restored_and_what_differs(run, capsys):
    resume(run, "--trainer.max_epochs", "3", "--model.lr", "0.5", "--ema.decay", "0.5", "--data.batch_size", "32",
           "--model.objective.drop", "0.3")  # fmt: skip
    said = capsys.readouterr().out
    for words in (
        f"resuming from {run}/checkpoints/last.ckpt: step 10, epoch 2",
        "restored: raw weights, averaged weights (10 updates), optimizer, learning rate, position in the data (batch 0 "
        "of epoch 3)",
        "changed: model.lr: 0.003 -> 0.5; no effect",
        "changed: model.objective.drop: 0.1 -> 0.3\n",
        "changed: data.batch_size: 64 -> 32",
        "changed: ema.decay: 0.999 -> 0.5",
        "changed: trainer.max_epochs: 2 -> 3",
    ):
        assert words in said, (words, said)
    assert said.count("changed:") == 5
    read = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert read["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.003  # as reported


def test_resumed_run_reports_no_difference_where_there_is_none(run, capsys):
    resume(run)
    assert "changed:" not in capsys.readouterr().out


def test_arguments_that_an_older_run_did_not_record_are_at_their_defaults(run, capsys):
    config = run / "config.yaml"
    older = [line for line in config.read_text().splitlines() if line.strip() not in ("latents: fly", "reduce: 1")]
    assert len(older) == len(config.read_text().splitlines()) - 2
    config.write_text("\n".join(older))
    resume(run)
    assert "changed:" not in capsys.readouterr().out


@pytest.mark.parametrize("options, words", [
    (["--model.net.widths", "[8,24]"], ["model.net.widths: [8, 16] -> [8, 24]"]),
    (["--model.net", "ResidualMLP"], ["model.net: AttentionUNet -> ResidualMLP"]),
    (["--model.schedule", "Linear"], ["model.schedule: Cosine -> Linear"]),
    (["--model.schedule.T", "500"], ["model.schedule.T: 1000 -> 500"]),
    (["--model.target", "Eps"], ["model.target: V -> Eps"]),
    (["--data.labels", "false"], ["num_classes: 10 -> 0"]),
    (["--system", "Classifier", "-c", "configs/features_digits.yaml"], ["model.schedule: Cosine -> None"]),
])  # fmt: skip
def test_another_model_is_refused(options, words, run, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    argv = options if "Classifier" in options else [*TINY, *options]
    assert main(["fit", *argv, "--out", str(run.parent.parent), "--resume", str(run)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("diffusion fit: error:"), said
    for word in (*words, f"fit -c {run}/config.yaml --resume {run}", "start a new run"):
        assert word in said, said
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}  # nothing has changed
    assert not held(run)  # so the next start in this process, such as a notebook's, can train it


def test_an_older_file_starts_a_new_run(run, capsys):
    """Nothing newer is lost; the new run has its own curve and files."""
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    resume(run, what=run / "checkpoints" / "step00000008.ckpt")
    new = run.with_name("version_1")
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert f"run: {new}" in capsys.readouterr().out
    last, old = (runs.read_checkpoint(r / "checkpoints" / "last.ckpt") for r in (new, run))
    assert all(torch.equal(v, last["state_dict"][k]) for k, v in old["state_dict"].items())
    assert [e.step for e in EventAccumulator(str(new)).Reload().Scalars("train/loss")] == [8, 9]


def test_damaged_files_are_set_aside_and_stale_ones_removed(run, capsys):
    folder = run / "checkpoints"
    for name in ("last.ckpt", "step00000010.ckpt"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()  # two names of one file
        (folder / name).write_bytes(content[:2000] + b"?" + content[2001:])
    (folder / ".last.tmp-x.ckpt").write_bytes(b"half")
    resume(run)
    said = capsys.readouterr().out
    assert said.count("damaged: its contents do not match its checksum") == 2 and "removed 1 half-written file" in said
    assert {p.name for p in folder.iterdir()} == {
        "last.ckpt", "step00000008.ckpt", "step00000010.ckpt", "last.ckpt.broken", "step00000010.ckpt.broken",
    }  # fmt: skip
    assert [e.step for e in EventAccumulator(str(run)).Reload().Scalars("train/loss")] == list(range(10))


def test_resume_auto_starts_a_new_run_if_all_checkpoints_are_damaged(run, capsys):
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    resume(run, what=run, code=2)
    assert "none of its 3 checkpoints is valid; start a new run" in capsys.readouterr().err
    resume(run, "--trainer.max_epochs", "1")
    assert "no valid checkpoint" in capsys.readouterr().out and run.with_name("version_1").exists()


# --- a run that died before its first checkpoint ---------------------------------------------------------


class Killed(BaseException):
    """As sudden as SIGKILL: no handler of the project reacts to it."""


def die(monkeypatch, out, *options, step=1):
    """Start a run that is killed in a step before its first checkpoint; returns its folder."""
    real = Diffusion.training_step

    def killed(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise Killed
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Diffusion, "training_step", killed)
        with pytest.raises(Killed):
            main(["fit", *TINY, "--out", str(out), "--resume", "auto", *options])
    (run,) = (out / "digits").glob("version_*")
    assert (run / "config.yaml").is_file() and not runs.checkpoints(run) and list(run.glob("events*"))
    return run


def steps(run):
    return [(e.step, e.value) for e in EventAccumulator(str(run)).Reload().Scalars("train/loss")]


def test_a_run_killed_before_its_first_checkpoint_restarts_in_its_folder(done, tmp_path, monkeypatch, capsys):
    run = die(monkeypatch, tmp_path)
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / ".grid.tmp-x.png").write_bytes(b"half")
    (run / "samples" / "step00000001.png").write_bytes(b"old")
    (run / "note.txt").write_text("a user's own")
    resume(run)
    said = capsys.readouterr().out
    assert f"--resume auto: {run} has no checkpoint yet, restarting it" in said and "removed 1 half-written" in said
    assert [p.name for p in run.parent.iterdir()] == ["version_0"] and len(list(run.glob("events*"))) == 1
    assert {p.name for p in (run / "samples").iterdir()} == {p.name for p in (done / "samples").iterdir()}
    assert (run / "note.txt").read_text() == "a user's own"
    a, b = (runs.read_checkpoint(r / "checkpoints" / "last.ckpt") for r in (run, done))
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    assert steps(run) == steps(done) and len(steps(run)) == 10


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".config.tmp-x.yaml"), (".lock", ".probe")])
def test_a_run_killed_before_its_configuration_was_written_restarts(left, tmp_path, capsys):
    run = tmp_path / "digits" / "version_0"
    run.mkdir(parents=True)
    for name in left:
        (run / name).touch()
    resume(run, "--trainer.max_epochs", "1")
    assert "has no checkpoint yet, restarting it" in capsys.readouterr().out
    assert [p.name for p in run.parent.iterdir()] == ["version_0"] and runs.newest_step(run) == 5
    assert {p.name for p in run.iterdir() if p.name.startswith(".")} == {".lock"}


def test_a_restarted_run_keeps_its_measured_choices(tmp_path, monkeypatch, capsys):
    """Although the measured times, and so the choice, would differ now."""
    monkeypatch.setattr(precision, "measured", lambda *args: precision.Choice("bf16-mixed", "channels_last", "quick"))
    monkeypatch.setattr(pace, "smallest", lambda found: (16, 0.01))
    options = ["--precision", "fastest", "--budget", "5m"]
    run = die(monkeypatch, tmp_path, *options)
    before = (run / "config.yaml").read_text()
    assert "precision bf16-mixed (quick); run:" in capsys.readouterr().out
    monkeypatch.setattr(precision, "measured", lambda *args: pytest.fail("measured again"))
    monkeypatch.setattr(pace, "smallest", lambda found: found[0])
    assert die(monkeypatch, tmp_path, *options) == run
    said = capsys.readouterr().out
    assert "precision bf16-mixed; run:" in said and "batch 16, lr 0.0015" in said
    assert (run / "config.yaml").read_text() == before


def test_a_running_run_is_not_resumed(run, tmp_path, monkeypatch, capsys):
    """Another process owns the run, with or without a checkpoint yet; in both cases a new run is started."""
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    theirs = Lock(run)
    resume(run)
    said = capsys.readouterr().out
    assert f"another process is training {run}, starting a new run" in said
    assert f"run: {run.with_name('version_1')}" in said and "resuming" not in said
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock"} | {
        p: t for p, t in before.items() if p.name == ".lock"}  # fmt: skip
    resume(run, what=run, code=2)
    assert "another process is training it; wait for it or stop it" in capsys.readouterr().err
    theirs.release()
    resume(run, what=run)
    assert "this run is complete" in capsys.readouterr().out

    dead = die(monkeypatch, tmp_path / "dead")
    theirs = Lock(dead)
    resume(dead)
    assert f"run: {dead.with_name('version_1')}" in capsys.readouterr().out and not runs.checkpoints(dead)
    theirs.release()


def test_two_new_runs_never_share_a_folder(tmp_path):
    experiment = tmp_path / "x"
    first = claim(experiment, Start())
    (experiment / "version_1").write_text("a file in the way")
    second = claim(experiment, Start())
    assert (first.folder.name, second.folder.name) == ("version_0", "version_2")
    assert held(first.folder) and held(second.folder)
    first.lock.release()
    assert not held(first.folder)
    second.lock.release()


# --- places ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"),
                                           (errno.EDQUOT, "quota"), (errno.EROFS, "Read-only")])  # fmt: skip
def test_a_write_that_fails_stops_the_run_and_keeps_the_last_file(number, words, tmp_path, capsys, monkeypatch):
    """The write fails at step 6: the run stops with a one-line error, and the file of step 4 is kept."""
    real = os.fsync

    def fsync(handle):
        if "step00000006" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        real(handle)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(["fit", *TINY, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said and "the last good one is kept" in said and "--resume" in said, said
    folder = tmp_path / "digits" / "version_0" / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", "step00000002.ckpt", "step00000004.ckpt"}
    resume(folder.parent)
    assert runs.read_checkpoint(folder / "last.ckpt")["global_step"] == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # in the log's thread
def test_a_run_whose_folder_is_removed_saves_its_state_and_stops(tmp_path, capsys, monkeypatch):
    """The run stops, since it cannot log, but first saves its state, so that only the old files are lost."""
    real = Checkpoint.on_train_batch_end

    def remove(self, trainer, *args):
        real(self, trainer, *args)
        if trainer.global_step == 5:
            shutil.rmtree(trainer.log_dir)

    monkeypatch.setattr(Checkpoint, "on_train_batch_end", remove)
    with pytest.warns(UserWarning, match="the run's folder was removed"):
        assert main(["fit", *TINY, "--out", str(tmp_path)]) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run's folder was removed during training; its last state was saved" in said, said
    run = tmp_path / "digits" / "version_0"
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5
    resume(run)
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 10


FULL = """
set -e
mount -t tmpfs -o size={size}k none {place}
cd {repo}
{python} -m diffusion fit {argv} --out {place} > {place}.out 2> {place}.err || echo $? > {place}.code
cp {place}/digits/version_0/checkpoints/last.ckpt {place}.ckpt
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_last_file(done, tmp_path):
    """A real file system with room for one and a half checkpoints."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    place = tmp_path / "disk"
    place.mkdir()
    size = (done / "checkpoints" / "last.ckpt").stat().st_size * 3 // 2 // 1024
    script = FULL.format(size=size, place=place, repo=REPO, python=sys.executable, argv=shlex.join(TINY))
    subprocess.run(["unshare", "-rm", "bash", "-c", script], check=True)
    said = place.with_suffix(".err").read_text().strip().splitlines()[-1]
    assert place.with_suffix(".code").read_text().strip() == "2", said
    assert said.startswith("diffusion fit: error:") and "the last good one is kept" in said, said
    assert runs.read_checkpoint(place.with_suffix(".ckpt"))["global_step"] == 2


# --- callers --------------------------------------------------------------------------------------------


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    """Python allows handlers in the main thread only; other threads train without them."""
    code = []
    thread = threading.Thread(target=lambda: code.append(main(["fit", *TINY, "--out", str(tmp_path)])))
    thread.start()
    thread.join()
    assert code == [0]


def test_checkpoint_is_the_last_callback(done):
    trainer = pl.Trainer(callbacks=[Checkpoint(), pl.callbacks.LambdaCallback()], logger=False, accelerator="cpu")
    assert isinstance(trainer.callbacks[-1], Checkpoint)  # last at the end of an epoch, when all else is done
