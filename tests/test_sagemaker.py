"""SageMaker training jobs, simulated by their folders (a tree like /opt/ml) and environment variables.

Nothing here has been run on AWS.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image

from diffusion import sagemaker
from diffusion.cli import main as diffusion
from diffusion.support import runs
from diffusion.training.build import DiffusionCLI
from diffusion.training.systems import Diffusion

REPO = Path(__file__).resolve().parents[1]
HYPER = {
    "config": "digits.yaml", "epochs": 2, "batch-size": 64, "lr": 1e-05, "model.net.widths": [8, 16],
    "model.net.attention": 1, "model.sampler.steps": 2, "trainer.accelerator": "cpu", "data.limit": 320,
    "trainer.check_val_every_n_epoch": 1, "samples.every_n_epochs": 0, "samples.n": 4, "gif.n": 1, "gif.frames": 2,
    "diagnostics.images": 0, "checkpoint.every_n_steps": 2, "data.labels": True,
}  # fmt: skip


def words(**changed):
    """Hyperparameters as SageMaker's toolkit puts them on the command line."""
    return [w for k, v in (HYPER | changed).items() for w in (f"--{k}", str(v))]


@pytest.fixture
def ml(tmp_path, monkeypatch):
    """The folders and variables of a job, with a current folder outside the repository."""
    for name in [n for n in os.environ if n.startswith(("SM_", "DIFFUSION_"))]:
        monkeypatch.delenv(name)
    root = tmp_path / "ml"
    for folder in ("model", "output/data", "checkpoints", "code"):
        (root / folder).mkdir(parents=True)
    for name, value in {
        "SM_MODEL_DIR": root / "model", "SM_OUTPUT_DATA_DIR": root / "output/data", "SM_OUTPUT_DIR": root / "output",
        "SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_NUM_GPUS": 0,
        "SM_RESOURCE_CONFIG": '{"current_host": "algo-1", "hosts": ["algo-1"]}',
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(root / "code")
    return root


def step(file):
    return runs.read_checkpoint(file)["global_step"]


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_job_leaves_a_model_that_can_be_used(ml, tmp_path, capsys, monkeypatch):
    assert sagemaker.main(words()) == 0
    run = ml / "checkpoints/digits/version_0"
    assert files(ml / "model") == {"checkpoints/last.ckpt", "config.yaml", "samples.png"}
    assert (ml / "model/checkpoints/last.ckpt").read_bytes() == (run / "checkpoints/last.ckpt").read_bytes()
    assert step(ml / "model/checkpoints/last.ckpt") == 10
    assert (ml / "model/samples.png").read_bytes() == (run / "samples/step00000010.png").read_bytes()
    output = files(ml / "output/data/digits/version_0")
    assert {"samples/step00000010.png", "config.yaml"} < output and not [p for p in output if p.endswith(".ckpt")]
    assert any("tfevents" in p for p in output) and not (ml / "output/failure").exists()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["lr"] == 1e-05 and config["data"]["init_args"]["batch_size"] == 64
    assert f"written for SageMaker: {ml}/model, {ml}/output/data" in capsys.readouterr().out

    monkeypatch.delenv("SM_MODEL_DIR")  # on the user's machine, from model.tar.gz
    model = ml / "model"
    assert diffusion(["sample", str(model), "--n", "2", "--out", str(tmp_path / "two.png")]) == 0
    assert Image.open(tmp_path / "two.png").size[0] > 8
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path / "home"))
    argv = ["fit", "-c", str(model / "config.yaml"), "--trainer.max_epochs"]
    assert diffusion([*argv, "1"]) == 0  # a new run, in the default folder of this machine
    assert step(tmp_path / "home/digits/version_0/checkpoints/last.ckpt") == 5
    assert diffusion([*argv, "3", "--resume", str(model)]) == 0
    assert step(model / "checkpoints/last.ckpt") == 15
    assert {p.name for p in (ml / "checkpoints/digits").iterdir()} == {"version_0"}


def stopping(monkeypatch, at):
    """Send the signal of a stop in the middle of a step; returns the list of steps done."""
    done, training_step = [], Diffusion.training_step

    def stopped(self, batch, batch_idx):
        if self.trainer.global_step == at and len(done) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(self.trainer.global_step)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Diffusion, "training_step", stopped)
    return done


def test_a_stopped_spot_job_resumes_exactly(ml, tmp_path, monkeypatch, capsys):
    """The job is stopped in the second epoch's second step; the new machine has only the checkpoints."""
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setenv("SM_MODEL_DIR", str(whole / "model"))
        patch.setenv("SM_OUTPUT_DATA_DIR", str(whole / "output/data"))
        assert sagemaker.main(words()) == 0
    done = stopping(monkeypatch, at=6)
    assert sagemaker.main(words()) == 143
    assert done == list(range(7))
    assert step(ml / "checkpoints/digits/version_0/checkpoints/last.ckpt") == 7
    assert step(ml / "model/checkpoints/last.ckpt") == 7 and not (ml / "output/failure").exists()
    for folder in ("model", "output"):
        shutil.rmtree(ml / folder)
        (ml / folder).mkdir()
    capsys.readouterr()
    assert sagemaker.main(words()) == 0
    said = capsys.readouterr().out
    assert "resuming from" in said and "step 7, epoch 2" in said and done == list(range(10))
    ends = [torch.load(p / "model/checkpoints/last.ckpt", weights_only=True)["state_dict"] for p in (whole, ml)]
    assert ends[0] and all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())  # the uninterrupted job's
    assert sagemaker.main(words()) == 0  # started again after completion: the model is written again
    assert "this run is complete" in capsys.readouterr().out and done == list(range(10))


def test_a_signal_within_the_first_step_leaves_a_checkpoint(ml, monkeypatch):
    stopping(monkeypatch, at=0)
    assert sagemaker.main(words()) == 143
    assert step(ml / "model/checkpoints/last.ckpt") == 1


@pytest.mark.parametrize("changed, said", [
    ({"model.lrr": 3}, "there is no option '--model.lrr'; did you mean 'lr'?"),
    ({"config": "digitz.yaml"}, "config: there is no file 'digitz.yaml', and no configuration of that name; did you"),
    ({"data": "CIFAR10", "data.limit": 3, "trainer.devices": "nine"}, "devices"),
])  # fmt: skip
def test_the_failure_file_has_the_reason_in_one_line(ml, changed, said, capfd):
    assert sagemaker.main(words(**changed)) == 1
    reason = (ml / "output/failure").read_text()
    assert said in reason and "\n" not in reason and len(reason) <= 1024
    assert f"diffusion: error: {reason}" in capfd.readouterr().err
    assert not list((ml / "checkpoints").rglob("*")) and not files(ml / "model")


def test_an_exception_is_in_the_failure_file_and_its_traceback_in_the_log(ml, monkeypatch, capfd):
    def breaks(self, batch, batch_idx):
        raise RuntimeError("a broken part")

    monkeypatch.setattr(Diffusion, "training_step", breaks)
    monkeypatch.delenv("SM_OUTPUT_DIR")  # the default is beside the model's folder
    assert sagemaker.main(words()) == 1
    assert (ml / "output/failure").read_text() == "RuntimeError: a broken part"
    assert "in breaks" in capfd.readouterr().err  # the traceback
    sagemaker.fail("another process of this run has ended")
    assert (ml / "output/failure").read_text() == "RuntimeError: a broken part"


def test_several_machines_without_a_launcher_are_refused(ml, monkeypatch):
    """Each machine would train alone, into the same address on S3."""
    monkeypatch.setenv("SM_HOSTS", '["algo-1", "algo-2"]')
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert sagemaker.main(words()) == 1
    assert "torch_distributed" in (ml / "output/failure").read_text()


def test_hyperparameters_become_options(ml, monkeypatch):
    last = ["--resume", "auto", "--out", str(ml / "checkpoints")]
    config = str(REPO / "configs/digits.yaml")
    assert sagemaker.arguments(["--config", "digits", "--epochs=3", "--trainer.max-steps", "-1"]) == [
        "-c", config, "--trainer.max_epochs", "3", "--trainer.max_steps", "-1", *last,
    ]  # fmt: skip
    layers = ["-c", config, "-c", str(REPO / "configs/digits_flow.yaml")]
    assert sagemaker.arguments(["-c", "digits.yaml, digits_flow.yaml"]) == [*layers, *last]
    assert sagemaker.arguments(["--resume", "a/run", "--out", "b"]) == ["--resume", "a/run", "--out", "b"]
    monkeypatch.setenv("SM_HPS", '{"lr": 0.001, "data.labels": false}')
    assert sagemaker.arguments([]) == ["--model.lr", "0.001", "--data.labels", "False", *last]
    own = ml / "code" / "own.yaml"
    own.write_text("{}")
    assert sagemaker.configuration("own.yaml") == Path("own.yaml")  # beside the entry point, where a job starts


def test_the_documented_job_is_valid(ml, monkeypatch):
    """Its files exist, its hyperparameters are options of `fit`, and its expressions match the losses in the log."""
    page = (REPO / "docs/sagemaker.md").read_text()
    tree = ast.parse(next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "PyTorch(" in b))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "PyTorch")
    given = {k.arg: k.value for k in call.keywords}
    wanted = ("source_dir", "entry_point", "dependencies", "hyperparameters", "metric_definitions")
    value = {k: ast.literal_eval(given[k]) for k in wanted}
    assert (REPO / value["source_dir"] / value["entry_point"]).is_file()
    assert all((REPO / folder).is_dir() for folder in value["dependencies"])
    argv = sagemaker.arguments([w for k, v in value["hyperparameters"].items() for w in (f"--{k}", str(v))])
    monkeypatch.setattr(sys, "argv", ["diffusion"])  # Lightning warns of arguments in both places
    cli = DiffusionCLI([*argv, "--trainer.accelerator", "cpu"])
    assert cli.trainer.max_epochs == 20 and cli.trainer.precision == "bf16-mixed" and cli.datamodule.batch_size == 128
    line = "epoch 2/3  step 40/90  train/loss 0.2278  val/loss 0.2355  642 images/s  0:13 left"  # as `Lines` prints
    found = {m["Name"]: re.search(m["Regex"], line)[1] for m in value["metric_definitions"]}
    assert found == {"train:loss": "0.2278", "val:loss": "0.2355"}


def test_requirements_are_the_packages_without_torch():
    text = (REPO / "pyproject.toml").read_text()
    needs = re.findall(r'^    "([^"]+)"', re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1], re.M)
    lines = (REPO / "docs/sagemaker/requirements.txt").read_text().splitlines()
    asked = {Requirement(line) for line in lines if not line.startswith("#")}
    assert asked == {Requirement(n) for n in needs if Requirement(n).name not in ("torch", "torchvision")}
    assert len(asked) == len(needs) - 2


# ---------------------------------------------------------------- real processes, in a container's tree

LIMIT = 600


def job(ml, launcher=(), **changed):
    """The process of a job, started as by SageMaker's toolkit in /opt/ml/code, with the estimator's files."""
    code = ml / "code"
    if not (code / "train.py").exists():
        shutil.copytree(REPO / "docs/sagemaker", code, dirs_exist_ok=True)
        for folder in ("diffusion", "configs"):
            shutil.copytree(REPO / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(LIMIT)  # until torchrun kills its processes; 30 by default
    return subprocess.Popen(
        [sys.executable, *launcher, "train.py", *words(**changed)], cwd=code, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def stop(ml, process):
    """Send SIGTERM once there is a checkpoint; the exit code and the output."""
    until = time.monotonic() + LIMIT
    while not list((ml / "checkpoints").rglob("step*.ckpt")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT)[0]
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("launcher, first", [
    ((), {143}),
    (("-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2"), {1}),
], ids=["one process", "torchrun"])  # fmt: skip
def test_a_real_job_is_stopped_and_resumes(ml, launcher, first):
    process = job(ml, launcher, epochs=1000)
    try:
        code, said = stop(ml, process)
    finally:
        process.kill()
    assert code in first and "stopped at step" in said, said
    assert not (ml / "output/failure").exists(), said
    last = ml / "checkpoints/digits/version_0/checkpoints/last.ckpt"
    reached = step(last)
    assert reached > 0 and step(ml / "model/checkpoints/last.ckpt") == reached
    a_pass = 5 if not launcher else 2  # 320 images in batches of 64, for one process or for each of two
    epochs = runs.read_checkpoint(last)["epoch"] + 2
    process = job(ml, launcher, epochs=epochs)
    said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0 and f"step {reached:,}" in said, said
    assert step(ml / "model/checkpoints/last.ckpt") == epochs * a_pass
    assert not (ml / "checkpoints/digits/version_1").exists() and (ml / "model/samples.png").exists()


@pytest.mark.slow
def test_a_real_job_in_two_processes_fails_with_one_reason(ml):
    process = job(ml, ("-m", "torch.distributed.run", "--nproc_per_node", "2"), **{"model.lrr": 1})
    said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1 and "there is no option '--model.lrr'" in said
    assert (ml / "output/failure").read_text().startswith("there is no option '--model.lrr'")
