"""`diffusion top`: the machine, and what a run recorded."""

import sys
from types import SimpleNamespace

import pytest

from diffusion.cli import main
from diffusion.commands import top
from diffusion.support import watched
from diffusion.support.lock import Lock

from ..training.callbacks.test_watch import NVML

ROWS = [
    {"time": 1e9, "step": 10, "images_per_s": 100.0, "gpu_watts": 300.0, "gpu_slowed": "power cap"},
    {"time": 1e9 + 10, "step": 20, "images_per_s": 200.0, "gpu_watts": 500.0, "gpu_slowed": "none"},
]


@pytest.fixture
def run(tmp_path):
    """An experiment with one run of two rows."""
    run = tmp_path / "digits" / "version_0"
    run.mkdir(parents=True)
    for row in ROWS:
        watched.append(run / watched.FILE, row)
    return run


def test_the_newest_run_is_summarised(run, capsys):
    (run.parent / "version_1").mkdir()  # of a start that failed
    assert main(["top", str(run.parent), "--once"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("machine: ") and "cores in use" in lines[0] and "GiB available" in lines[0]
    assert any("not training, step 20, 2 rows, the newest" in line for line in lines)
    assert "images per second 200 150 200" in lines
    assert "GPU power, W 500 400 500" in lines
    assert "GPU slowed by none 50% of rows power cap" in lines


def test_a_running_training_and_its_other_processes_are_shown(run):
    watched.append(run / watched.name_of(1), ROWS[0])
    lock = Lock(run)
    said = watched.of_run(run, now=1e9 + 75)
    lock.release()
    assert "watch.csv: training, step 20, 2 rows, the newest 1:05 ago" in said
    assert "watch-1.csv: training, step 10, 1 rows, the newest 1:15 ago" in said


def test_a_run_without_rows_and_no_run(tmp_path, capsys):
    (tmp_path / "config.yaml").touch()
    assert main(["top", str(tmp_path), "--once"]) == 0
    assert "nothing is recorded yet" in capsys.readouterr().out
    assert main(["top", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such run" in capsys.readouterr().err


def test_the_machine_alone_with_a_gpu(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pynvml", NVML(SimpleNamespace(now=0.0, joules=0.0)))
    assert main(["top"]) == 0  # the output is no terminal
    assert capsys.readouterr().out.splitlines()[-1] == (
        "GPU 0: Simulated, 97 % busy, 60 C, 1,410 MHz, 100 of 700 W, 3.0 of 8.0 GiB in use, "
        "slowed by power cap+temperature"
    )


def test_a_terminal_is_refreshed_until_ctrl_c(run, monkeypatch, capsys):
    naps = iter([None, None])

    def sleep(seconds):
        assert seconds == 5
        if next(naps, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["top", str(run), "--every", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count(top.CLEAR) == 2 and said.count("images per second") == 2
