"""Signals to real processes: exit codes, delay, messages, files and resumption. Slow."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion.support import runs
from diffusion.support.signals import Interrupted

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
ARGV = [
    "fit", "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--model.net.widths", "[8,16]",
    "--model.net.attention", "1", "--data.batch_size", "32", "--samples.every_n_epochs", "0", "--samples.n", "4",
    "--gif.n", "1", "--gif.frames", "2", "--model.sampler.steps", "2", "--diagnostics.images", "0",
    "--checkpoint.every_n_steps", "100000", "--resume", "auto", "--trainer.check_val_every_n_epoch", "1",
]  # fmt: skip


LIMIT = 600  # seconds after which a process counts as hung
ENDLESS = """
import sys, time
from diffusion.cli import main
from diffusion.training.systems import Diffusion
training_step = Diffusion.training_step
def endless(self, batch, batch_idx):
    if self.trainer.global_step == 3:
        print("in a step", flush=True)
        time.sleep(3600)
    return training_step(self, batch, batch_idx)
Diffusion.training_step = endless
sys.exit(main())
"""  # the command, whose fourth step does not end


def begin(out, *options, command=("-m", "diffusion")):
    argv = [sys.executable, "-W", "ignore", *command, *ARGV, "--out", str(out), *options]
    return subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(process, words, error=False):
    """Read the output of a process, or what it writes to stderr, up to a line that contains these words."""
    for line in process.stderr if error else process.stdout:
        if words in line:
            return line
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_leaves_a_checkpoint_of_its_step(number, code, tmp_path):
    process = begin(tmp_path, "--trainer.max_epochs", "500")
    until(process, "images/s")  # the first line of progress comes after 10 s
    process.send_signal(number)
    said, error = process.communicate(timeout=LIMIT)
    assert process.returncode == code, error
    said = "\n".join(line for line in said.splitlines() if "images/s" not in line)  # but its progress
    assert "Traceback" not in said + error and "val/loss" not in said
    (run,) = (tmp_path / "digits").iterdir()
    step = runs.newest_step(run)
    assert f"stopped at step {step:,}; newest checkpoint: step {step:,}" in said
    assert f"--resume {run}" in said, said
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == step
    epochs = step // 44 + 1  # 1437 training digits are 44 batches
    process = begin(tmp_path, "--trainer.max_epochs", str(epochs))
    said, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and f"last.ckpt: step {step:,}" in said, (said, error)
    assert runs.newest_step(run) == 44 * epochs


def test_two_ctrl_c_quit_at_once(tmp_path):
    """The second follows as soon as the first is reported, in a step that does not end."""
    process = begin(tmp_path, "--trainer.max_epochs", "500", command=["-c", ENDLESS])
    until(process, "in a step")
    process.send_signal(signal.SIGINT)
    until(process, "stopping after this step", error=True)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "Traceback" not in said + error, error
    assert error.strip().splitlines()[-1] == "diffusion fit: interrupted"


def test_ctrl_c_before_training_ends_the_process(tmp_path):
    process = begin(tmp_path, "--trainer.max_epochs", "500")
    until(process, "parameters) on Digits")
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "Traceback" not in said + error, error


@pytest.mark.notebook
def test_a_notebook_is_usable_after_stop(tmp_path):
    """The cell ends in KeyboardInterrupt, the kernel survives, and the next cell resumes training."""
    manager_of = pytest.importorskip("jupyter_client.manager").start_new_kernel
    manager, client = manager_of(kernel_name="python3", cwd=str(REPO), startup_timeout=LIMIT)

    def reply(number, wait=LIMIT):
        """The answer to a request; a slow kernel also answers several times that it is ready."""
        while (message := client.get_shell_msg(timeout=wait))["parent_header"].get("msg_id") != number:
            pass
        return message["content"]

    def run(code):
        """Execute code; after an error a kernel aborts what it receives for a moment."""
        while (answer := reply(client.execute(code)))["status"] == "aborted":
            time.sleep(0.1)
        return answer

    try:
        argv = [*ARGV[1:], "--out", str(tmp_path), "--checkpoint.every_n_steps", "20"]
        run("import sys; sys.path.insert(0, '.'); from diffusion.training.run import train")
        training = client.execute(f"train({[*argv, '--trainer.max_epochs', '500']!r})")
        for _ in range(10 * LIMIT):  # until it trains, however slow the machine is
            if (tmp_path / "digits" / "version_0" / "checkpoints" / "last.ckpt").exists():
                break
            time.sleep(0.1)
        manager.interrupt_kernel()
        ended = reply(training)
        assert ended["status"] == "error" and ended["ename"] == "Interrupted", ended
        assert issubclass(Interrupted, KeyboardInterrupt)
        step = runs.newest_step(tmp_path / "digits" / "version_0")
        assert step and run("import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler")[
            "status"] == "ok"  # fmt: skip
        epochs = str(step // 44 + 1)
        ended = run(f"train({[*argv, '--trainer.max_epochs', epochs]!r}).trainer.global_step")
        assert ended["status"] == "ok", ended
        assert runs.newest_step(tmp_path / "digits" / "version_0") == 44 * int(epochs)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_signals_at_random_times_end_every_process():
    """A small run of `benchmarks/interrupts.py`."""
    options = ["--tries", "6", "--seed", "1", "--bound", str(LIMIT)]
    argv = [sys.executable, "-W", "ignore", "benchmarks/interrupts.py", *options]
    result = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=20 * LIMIT)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().splitlines()[-1].startswith("| all | | 6 |"), result.stdout


def test_run_with_five_kills_equals_the_uninterrupted_one(tmp_path):
    """A small run of `benchmarks/chaos.py`: five SIGKILLs."""
    argv = [sys.executable, "-W", "ignore", "benchmarks/chaos.py", "--kills", "5", "--seed", "1"]
    result = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=20 * LIMIT)
    print(result.stdout)
    assert result.returncode == 0 and "| lost runs | 0 |" in result.stdout, result.stderr
