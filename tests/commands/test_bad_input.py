"""Bad input gives one line that says what to do, exit code 2, no traceback, and leaves no files."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion.cli import COMMANDS, main

from .conftest import TINY

FIT = ["fit", *TINY]


def refused(capsys, argv, *words):
    """Run a command line that must fail, and return its one-line error."""
    assert main([str(a) for a in argv]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    said = [line for line in said if line.startswith("diffusion")]
    assert len(said) == 1 and len(said[0]) < 600, said
    assert "Traceback" not in said[0]
    for word in words:
        assert word in said[0], said[0]
    return said[0]


@pytest.mark.parametrize("options, words", [
    (["--model.lrr", "3"], ["'--model.lrr'", "did you mean 'lr'"]),
    (["--trainer.max_epoch", "3"], ["did you mean 'max_epochs'"]),
    (["--bogus", "3"], ["no option '--bogus'", "trainer"]),
    (["--model.lr", "abc"], ["model.lr", "wanted float", "'abc'"]),
    (["--trainer.max_epochs", "x"], ["trainer.max_epochs", "wanted int"]),
    (["--data.batch_size", "x"], ["data.batch_size: wanted int, got 'x'"]),
    (["--data.latents", "disk"], ["data.latents: wanted fly or cache, got 'disk'"]),
    (["--model.net", "AttentionUNett"], ["no class 'AttentionUNett'", "AttentionUNet"]),
    (["--model.schedule", "Linea"], ["did you mean 'Linear'", "Cosine", "Karras", "Quadratic"]),
    (["--model.sampler", "DDIMM"], ["DDIM, DDPM"]),
    (["--model.hint", "Masket"], ["did you mean 'Masked'", "LowResolution"]),
    (["--model.hint", "LowResolution", "--model.hint.factor", "3"], [": LowResolution: factor 3 does not divide"]),
    (["--model.target", "Noise"], ["Eps, ", "Velocity"]),
    (["--data", "Digitz"], ["did you mean 'Digits'", "CIFAR10", "Sprites"]),
    (["--model.net.widthz", "3"], ["AttentionUNet has no option 'widthz'", "did you mean 'widths'"]),
    (["--data.batch_sizee", "3"], ["Digits has no option", "did you mean 'batch_size'"]),
    (["--data.batch_size", "0"], ["batch_size >= 1"]),
    (["--model.schedule", "Linear", "--model.schedule.T", "1"], ["at least 2"]),
    (["--model.net.widths", "[8,16,16,16,16]"], ["8x8 is not divisible by 16", "pad to 16x16"]),
    (["--model.objective.drop", "2"], ["probability"]),
    (["--ema.decay", "1.5"], ["[0, 1)"]),
    (["--model.lr", "-1"], ["lr must be positive"]),
    (["--trainer.accelerator", "gpu"], ["GPU", "--trainer.accelerator auto or cpu"]),
    (["-c", "nowhere.yaml"], ["nowhere.yaml"]),
    (["--resume", "nowhere"], ["nowhere: no such checkpoint"]),
])  # fmt: skip
def test_fit_refuses(options, words, tmp_path, capsys):
    if "gpu" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(capsys, [*FIT, "--out", tmp_path / "runs", *options], *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, words", [
    ("modell: {lr: 3}", ["there is no option 'modell", "did you mean 'model'"]),
    ("model: {lrr: 3}", ["did you mean 'lr'"]),
    ("model: {net: {class_path: AttentionUNet, init_args: {widthz: 3}}}", ["did you mean 'widths'"]),
    ("data: {class_path: Digitz}", ["did you mean 'Digits'"]),
    ("trainer: {max_epoch: 3}", ["did you mean 'max_epochs'"]),
    ("model: [1,", ["line 2"]),
])  # fmt: skip
def test_fit_refuses_a_configuration(text, words, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(text + "\n")
    refused(capsys, [*FIT, "-c", tmp_path / "a.yaml", "--out", tmp_path / "runs"], *words)
    assert not (tmp_path / "runs").exists()


def test_fit_refuses_a_run_folder_that_cannot_be_created(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused(capsys, [*FIT, "--out", tmp_path / "file"], "cannot be written", "--out")


@pytest.mark.filterwarnings("ignore:step.0. Advice. prior mismatch")  # of the training that goes on
def test_a_schedule_that_does_not_reach_noise_warns(tmp_path, capsys):
    options = ["--model.schedule", "Linear", "--model.schedule.T", "100", "--model.schedule.rescale", "false"]
    with pytest.warns(UserWarning, match="alpha-bar at T = 100 is 0.36.*brightness"):
        assert main([*FIT, "--out", str(tmp_path), "--trainer.fast_dev_run", "true", *options]) == 0


@pytest.mark.parametrize("options, words", [
    (["--n", "0"], ["n and batch_size must be at least 1"]),
    (["--n", "x"], ["invalid int value"]),
    (["--batch_size", "0"], ["at least 1"]),
    (["--steps", "0"], ["steps must be at least 1"]),
    (["--steps", "2000"], ["1 .. 1000"]),
    (["--label", "10"], ["labels are 0 .. 9"]),
    (["--label", "-1"], ["labels are 0 .. 9"]),
    (["--sampler", "DDI"], ["did you mean 'DDIM'"]),
    (["--sampler", "nowhere.Sampler"], ["nowhere"]),
    (["--eta", "x"], ["wanted float"]),
    (["--eta", "3"], ["eta must lie in [0, 1]"]),
    (["--etaa", "1"], ["did you mean '--eta'"]),
    (["--eta"], ["--eta needs a value"]),
    (["--grid", "up"], ["trailing, leading, linspace"]),
    (["--weights", "best"], ["ema", "raw"]),
    (["--device", "toaster"], ["unknown device"]),
    (["--out", "grid.bmp"], [".npy, a .npz, or a folder"]),
])  # fmt: skip
def test_sample_refuses(options, words, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["sample", tiny, *options], *words)
    assert not list(tmp_path.iterdir())


MINE = """
from diffusion.samplers import DDIM, Sampler

class Needy(DDIM):
    def __init__(self, strength, steps=50):
        super().__init__(steps)

class Half(Sampler):
    pass
"""


@pytest.mark.parametrize("options, words", [
    (["--sampler", "DDI"], ["no sampler 'DDI'; did you mean 'DDIM'", "AnnealedLangevin, ", "DDPM, "]),
    (["--schedule", "DDIM"], ["no schedule 'DDIM'", "Cosine, ", "Karras, "]),
    (["--sampler", "nowhere.Sampler"], ["cannot import 'nowhere.Sampler'"]),
    (["--sampler", "mine_to_check.Missing"], ["cannot import", "Missing"]),
    (["--schedule", "mine_to_check.Needy"], ["is not a subclass", "derive it from diffusion.noise.schedule.Schedule"]),
    (["--sampler", "mine_to_check.Half"], ["is abstract", "implement step"]),
    (["--sampler", "mine_to_check.Needy"], ["requires strength", "give them defaults"]),
    (["--sampler"], ["expected at least one argument"]),
    (["--samplers", "DDIM"], ["unknown option"]),
    (["--out", "table.txt"], ["wanted a .md"]),
    (["--out", "mine_to_check.py/table.md"], ["cannot be written"]),
])  # fmt: skip
def test_check_refuses(options, words, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine_to_check.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_to_check", raising=False)
    refused(capsys, ["check", *options], *words)
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine_to_check.py"]


def test_missing_gpu_is_a_one_line_error(tiny, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(capsys, ["sample", tiny, "--device", "cuda"], "0 GPUs", "use auto or cpu")


def test_unwritable_outputs_are_refused(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    refused(capsys, ["sample", tiny, "--out", tmp_path / "file" / "grid.png"], "cannot be written")
    refused(capsys, ["sample", tiny, "--out", tmp_path / "full"], "not empty")
    refused(capsys, ["film", tiny, "--out", tmp_path / "a.avi"], "wanted .gif, .mp4")
    refused(capsys, ["film", tiny, "--out", tmp_path / "a.gif", "--frames", "1"], "frames must")
    refused(capsys, ["film", tiny, "--out", tmp_path / "a.gif", "--fps", "99"], "fps must lie in")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


class Evil:
    def __reduce__(self):
        return (exec, ("open('/tmp/diffusion-was-here', 'w')",))


@pytest.mark.parametrize("what", ["missing", "empty", "truncated", "text", "foreign", "pickle", "malicious"])
@pytest.mark.parametrize("command", ["sample", "film", "validate", "fit", "evaluate", "nll", "describe", "edit vary"])
def test_files_that_are_not_checkpoints_are_refused(command, what, tiny, tmp_path, capsys):
    path, good = tmp_path / "a.ckpt", tiny / "checkpoints" / "last.ckpt"
    words = {
        "missing": "no such checkpoint",
        "foreign": "not a checkpoint of this project",
        "malicious": "could run code",
    }
    if what == "empty":
        path.write_bytes(b"")
    elif what == "truncated":
        path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif what == "text":
        path.write_text("hello")
    elif what == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif what == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    elif what == "malicious":
        torch.save({"state_dict": Evil()}, path)
    argv = [*FIT, "--out", tmp_path / "runs", "--resume", path] if command == "fit" else [*command.split(), path]
    refused(capsys, argv, "a.ckpt", words.get(what, "not a checkpoint"))
    assert not shutil.os.path.exists("/tmp/diffusion-was-here")
    assert {p.name for p in tmp_path.iterdir()} <= {"a.ckpt"}


def test_an_empty_folder_is_not_a_run(tmp_path, capsys):
    refused(capsys, ["sample", tmp_path], "no checkpoint (*.ckpt)")


@pytest.mark.parametrize("images, labels, words", [
    (np.zeros((4, 8, 8, 3), np.uint8), np.eye(5)[:4], "16"),
    (np.zeros((4, 16, 16, 3), np.float32), np.eye(5)[:4], "uint8"),
    (np.zeros((4, 16, 16, 3), np.uint8), np.eye(5)[:3], "3"),
    (np.zeros((4, 16, 16, 3), np.uint8), np.ones((4, 5)), "one-hot"),
])  # fmt: skip
def test_sprites_refuse_files_of_a_wrong_kind(images, labels, words, tmp_path, capsys):
    np.save(tmp_path / "i.npy", images), np.save(tmp_path / "l.npy", labels)
    options = ["--data.images", tmp_path / "i.npy", "--data.labels_file", tmp_path / "l.npy"]
    refused(capsys, ["fit", "-c", "configs/sprites.yaml", "--out", tmp_path / "runs", *options], words)


def test_missing_data_is_a_one_line_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion.data.mnist._download", lambda *a: (_ for _ in ()).throw(OSError("no network")))
    refused(
        capsys,
        ["fit", "-c", "configs/mnist.yaml", "--data.root", tmp_path, "--out", tmp_path / "runs"],
        "MNIST",
        "digits",
    )


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["sample", str(tmp_path / "no"), "--debug"])


def test_an_unknown_command_gets_a_suggestion(capsys):
    refused(capsys, ["sampel"], "did you mean 'sample'")


def test_help_imports_no_torch():
    """The help imports neither torch nor Lightning, and takes well under a second."""
    heavy = "{'torch', 'pytorch_lightning', 'numpy'}"
    code = f"import sys; from diffusion.cli import main; main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]" and "diffusion sample RUN" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert "usage" in capsys.readouterr().out


def test_doctor_reports_a_sound_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path / "runs"))
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_text("")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch ", "GPU ", "MNIST; Digits and built-in", "GiB free, writing works", "everything is in order"):
        assert word in said, said


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "argv", [["--help"], pytest.param(["describe", "configs/digits.yaml"], marks=pytest.mark.slow)]
)
def test_a_closed_output_pipe_is_not_an_error(argv, unbuffered):
    """As in `diffusion describe ... | head -1`: the shell's code for a closed pipe, and nothing on stderr."""
    there, here = os.pipe()
    os.close(there)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "diffusion", *argv]
    done = subprocess.run(command, stdout=here, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(here)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_other_than_the_output_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr("diffusion.commands.doctor.main", lambda argv: (_ for _ in ()).throw(BrokenPipeError(32, "x")))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("diffusion doctor: error:")
