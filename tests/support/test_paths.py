"""The folders of data, runs and caches: the argument, then the environment, SageMaker, and the repository."""

import json
from pathlib import Path

import pytest

from diffusion.cli import main
from diffusion.data import MNIST
from diffusion.support import paths
from diffusion.support.console import board

REPO = Path(__file__).resolve().parents[2]
VARIABLES = ("SM_CHANNEL_TRAINING", "DIFFUSION_DATA", "DIFFUSION_OUT", "SM_MODEL_DIR", "DIFFUSION_CACHE")
INSTANCE = {
    "ResourceArn": "arn:aws:sagemaker:eu-west-1:123456789012:notebook-instance/my-book",
    "ResourceName": "my-book",
}
STUDIO = {
    "AppType": "JupyterLab", "DomainId": "d-abc", "SpaceName": "mine", "ResourceName": "default",
    "ResourceArn": "arn:aws:sagemaker:eu-west-1:123456789012:app/d-abc/mine/JupyterLab/default",
}  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """An environment without the variables and metadata, with another current folder and home."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "METADATA", tmp_path / "resource-metadata.json")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def told(facts):
    paths.METADATA.write_text(json.dumps(facts))


@pytest.mark.parametrize("place, chosen, order", [
    (paths.data_root, "", [("SM_CHANNEL_TRAINING", ""), ("DIFFUSION_DATA", "")]),
    (paths.run_root, "", [("DIFFUSION_OUT", ""), ("SM_MODEL_DIR", "/checkpoints")]),
    (paths.cache_root, None, [("DIFFUSION_CACHE", "")]),
])  # fmt: skip
def test_paths_follow_argument_then_environment_then_default(place, chosen, order, monkeypatch, tmp_path):
    """Listed from the lowest precedence up, each takes precedence over those before; none is the current folder."""
    last = {paths.data_root: REPO / "data", paths.run_root: REPO / "lightning_logs"}
    assert place() == last.get(place, tmp_path / "home/.cache/litdiffusion")
    for k, (name, below) in reversed(list(enumerate(order))):
        top = tmp_path / f"top{k}"
        monkeypatch.setenv(name, str(top / "model" if below else top))
        assert place() == (Path(f"{top}{below}") if below else top)
    if chosen is not None:
        assert place("there") == tmp_path / "there" and place("~/there") == tmp_path / "home/there"
        assert place("") == place()


def test_runs_of_a_training_job_go_to_the_synced_folder(monkeypatch):
    monkeypatch.setenv("SM_MODEL_DIR", "/opt/ml/model")
    assert paths.run_root() == Path("/opt/ml/checkpoints")


def test_data_sets_and_runs_use_the_configured_roots(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path / "outs"))
    assert MNIST().folder == tmp_path / "sets" and MNIST(root="mine").folder == tmp_path / "mine"
    argv = ["fit", "-c", str(REPO / "configs/digits.yaml"), "--trainer.accelerator", "cpu", "--data.limit", "64"]
    small = ["--model.net.widths", "[8,8]", "--model.net.attention", "1", "--samples.n", "1", "--gif.n", "1"]
    small += ["--model.sampler.steps", "1", "--diagnostics.images", "0", "--trainer.max_epochs", "1"]
    assert main([*argv, *small]) == 0
    assert (tmp_path / "outs/digits/version_0/checkpoints/last.ckpt").exists()
    assert main([*argv, *small, "--out", "here"]) == 0
    assert (tmp_path / "here/digits/version_0/checkpoints/last.ckpt").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"outs", "here", "home"}, "nothing is written by accident"


def test_no_module_depends_on_the_current_directory():
    """`lightning_logs` and `data` are resolved in paths.py alone; the current folder is only shown, and searched for
    modules of the user's."""
    allowed = {"paths.py", "cli.py", "console.py"}
    for file in (REPO / "diffusion").rglob("*.py"):
        text = file.read_text()
        wrong = [w for w in ("Path.cwd()", "os.getcwd()", 'Path("lightning_logs', 'Path("data') if w in text]
        assert not wrong or file.name in allowed, (file, wrong)


@pytest.mark.parametrize("facts, where, address", [
    (None, "", "http://localhost:6006/"),
    ([], "", "http://localhost:6006/"),
    (INSTANCE, "notebook instance", "https://my-book.notebook.eu-west-1.sagemaker.aws/proxy/6006/"),
    ({"ResourceName": "my-book"}, "notebook instance", "/proxy/6006/"),
    (STUDIO, "Studio", "/jupyterlab/default/proxy/6006/"),
    (STUDIO | {"AppType": "KernelGateway"}, "Studio", "/jupyter/default/proxy/6006/"),
])  # fmt: skip
def test_sagemaker_environment_and_tensorboard_address(facts, where, address, monkeypatch):
    if facts is not None:
        told(facts)
    assert paths.home() == where and paths.tensorboard_address() == address
    assert paths.tensorboard_address(7007) == address.replace("6006", "7007")
    line = board(Path("lightning_logs/digits/version_0"))
    assert line.endswith(
        f"--logdir lightning_logs/digits   # open {address}" if where else "--logdir lightning_logs/digits"
    )
    monkeypatch.setenv("SM_MODEL_DIR", "/opt/ml/model")
    assert paths.home() == "training job" and board(Path("a/b")).endswith("--logdir a")


def test_doctor_reports_the_environment_and_what_a_stop_loses(monkeypatch, tmp_path, capsys):
    told(INSTANCE)
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path / "runs"))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "SageMaker          notebook instance" in said and "LOST WHEN THE INSTANCE STOPS" in said
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path / "home/SageMaker/runs"))
    assert main(["doctor"]) == 0
    assert "LOST" not in capsys.readouterr().out
    monkeypatch.delenv("DIFFUSION_OUT")
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "ml/model"))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "SageMaker          training job" in said and f"runs               {tmp_path}/ml/checkpoints: " in said
