"""Two machines, as two launchers of torchrun on this one: they train and stop as one, and go on from the same files."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.processes import TINY, newest
from diffusion.support import runs

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds after which a launcher counts as hung
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(LIMIT)  # until torchrun kills its processes; 30 by default


class Machines:
    """Two launchers with one process each; their output goes to machine0.txt and machine1.txt.

    Used as a context: none of their processes outlives it.

    Args:
        outs: the folders of the runs on each of them.
        rendezvous: "c10d", in which either may be the first, or "static", in which the first one is.
    """

    def __init__(self, folder: Path, outs: list[Path], words: list[str], rendezvous: str = "c10d") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files = [folder / f"machine{k}.txt" for k in range(2)]
        self.commands = []
        for k, out in enumerate(outs):
            place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
            if rendezvous == "static":
                place = ["--node-rank", str(k), "--master-addr", "127.0.0.1", "--master-port", str(port)]
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *place]
            self.commands.append([*launcher, "--local-addr", "127.0.0.1", "-m", "--", "diffusion", *words,
                                  "--out", str(out)])  # fmt: skip

    def __enter__(self) -> "Machines":
        self.launchers = []
        for command, file in zip(self.commands, self.files, strict=True):
            with open(file, "w") as out:
                options = {"cwd": REPO, "stdout": out, "stderr": out, "env": ENVIRONMENT, "start_new_session": True}
                self.launchers.append(subprocess.Popen(command, **options))
        return self

    def __exit__(self, *error) -> None:
        for launcher in self.launchers:
            found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
            for pid in (*map(int, found.stdout.split()), launcher.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            launcher.wait()

    def codes(self, seconds: float = LIMIT) -> list[int | None]:
        """Exit codes of both launchers, None for one still alive after the given seconds."""
        until = time.monotonic() + seconds
        for launcher in self.launchers:
            try:
                launcher.wait(max(0.01, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
        return [launcher.poll() for launcher in self.launchers]

    def said(self) -> list[str]:
        return [file.read_text() for file in self.files]


def fit(*more: str) -> list[str]:
    return [*TINY, "--diagnostics.images", "0", "--samples.every_n_epochs", "0", *more]


def diffusion(*words: str) -> subprocess.CompletedProcess:
    """A command in one process, which has to end in time."""
    argv = [sys.executable, "-m", "diffusion", *words]
    return subprocess.run(argv, cwd=REPO, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two machines with a common folder."""
    out = tmp_path_factory.mktemp("common")
    with Machines(out, [out, out], fit("--trainer.max_epochs", "2", "--checkpoint.every_n_steps", "2")) as machines:
        assert machines.codes() == [0, 0], machines.said()
        said = "".join(machines.said())
    assert said.count("parameters) on Digits") == said.count("next:") == 1, said
    return out / "digits" / "version_0"


def test_two_machines_train_one_run_and_one_process_opens_it(trained):
    """`validate` waits for nobody, and finds the loss that the two have logged."""
    assert runs.newest_step(trained) == 4 and [p.name for p in trained.parent.iterdir()] == ["version_0"]
    assert runs.read_checkpoint(trained / "checkpoints" / "last.ckpt")["place"] == (2, 64)
    recorded = yaml.safe_load((trained / "config.yaml").read_text())["trainer"]
    assert (recorded["devices"], recorded["num_nodes"]) == ("auto", 1)
    logged = EventAccumulator(str(trained)).Reload().Scalars("val/loss")[-1].value
    for more in ([], ["--trainer.num_nodes=2"]):  # as older versions recorded it
        done = diffusion("validate", str(trained), *more)
        assert done.returncode == 0, done.stderr
        assert float(re.search(r"val/loss ([\d.]+) ", done.stdout).group(1)) == pytest.approx(logged, rel=1e-5)


@pytest.mark.parametrize("to", [0, 1])
def test_a_signal_to_either_launcher_stops_both_with_a_checkpoint(to, tmp_path):
    with Machines(tmp_path, [tmp_path, tmp_path], fit("--trainer.max_epochs", "1000")) as machines:
        until = time.monotonic() + LIMIT
        while not newest(tmp_path):  # training is under way
            assert time.monotonic() < until and None in machines.codes(0.05), machines.said()
        machines.launchers[to].send_signal(signal.SIGTERM)
        codes = machines.codes()
        assert None not in codes and 0 not in codes, machines.said()  # torchrun has codes of its own
        assert "".join(machines.said()).count("stopped at step") == 1, machines.said()
    last = tmp_path / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    step = runs.read_checkpoint(last)["global_step"]
    assert step == newest(tmp_path) > 0
    if to:
        epochs = str(runs.read_checkpoint(last)["epoch"] + 3)
        with Machines(
            tmp_path, [tmp_path, tmp_path], fit("--resume", "auto", "--trainer.max_epochs", epochs)
        ) as machines:
            assert machines.codes() == [0, 0], machines.said()
            assert f"last.ckpt: step {step:,}" in "".join(machines.said())
        assert newest(tmp_path) > step


@pytest.mark.parametrize("without", [0, 1])
def test_a_machine_without_the_checkpoints_is_refused(without, trained, tmp_path):
    """Whether it is the first, which would begin a new run, or not; both say so and end."""
    empty, full = tmp_path / "empty", trained.parent.parent
    outs = [full, full]
    outs[without] = empty
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.name != ".lock"}
    words = fit("--resume", "auto", "--trainer.max_epochs", "4")
    with Machines(tmp_path, outs, words, rendezvous="static") as machines:
        codes = machines.codes()
        said = machines.said()
    assert None not in codes and 0 not in codes, said
    host, file = socket.gethostname(), trained / "checkpoints" / "last.ckpt"
    for k in range(2):
        (line,) = [line for line in said[k].splitlines() if "diffusion fit: error:" in line]
        assert "wanted the same checkpoint on every machine" in line, line
        assert f"process {without} (host {host}) sees no checkpoint in {empty}/digits" in line, line
        assert f"process {1 - without} (host {host}) sees {file} (step 4, sha256 " in line, line
        assert "copy the newest run's folder to the same place on every machine" in line, line
    assert not list(empty.rglob("version_*"))
    assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.name != ".lock"}
