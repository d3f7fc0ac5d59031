"""Signals at random times to real `diffusion fit` processes: each must end promptly, with the right exit code.

    python benchmarks/interrupts.py [--tries 200] [--at-once 2] [--out interrupts.md]

A tiny run is trained once to learn how long it takes. Then the same command is started repeatedly and receives one
SIGINT or SIGTERM: half of them at a time that is uniform from the start of the process to a little after its end, half
within two seconds of a random milestone (the run's folder, the first checkpoint, the last image), since a busy machine
spends most of the time in imports. Signals thus arrive while Python starts, in imports, before the first step, in
training, while checkpoints and images are written, and at interpreter shutdown. A try is lost when its process

- does not end within --bound seconds of the signal, or not at all;
- ends with a code other than 130 (SIGINT) or 143 (SIGTERM): 0 only where the run is complete, and -2, -15 or 1 only
  where Python had not yet begun to run the project's code (1: SIGINT while Python itself initializes);
- prints a traceback (Python's own before it runs the project's code is not counted);
- leaves a half-written file, or a checkpoint that cannot be read.
"""

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
EPOCHS, STEPS = 2, 10
RUN = [
    "-W", "ignore", "-m", "diffusion", "fit", "-c", str(REPO / "configs" / "digits.yaml"),
    "--trainer.accelerator", "cpu", "--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch", "1",
    "--trainer.log_every_n_steps", "1", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
    "--model.sampler.steps", "2", "--data.batch_size", "64", "--data.limit", "320", "--samples.every_n_epochs", "1",
    "--samples.n", "4", "--gif.n", "1", "--gif.frames", "2", "--diagnostics.images", "20",
    "--checkpoint.every_n_steps", "2", "--resume", "auto",
]  # fmt: skip
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MILESTONES = ("config.yaml", "step*.ckpt", "denoising.gif")  # files of a run, in the order in which they come
NAMES = ("before the run has a folder", "before the first checkpoint", "in training", "after training")


class Try(NamedTuple):
    """One process: the signal, its time, what was hit, the exit code, seconds to the end, what is wrong."""

    number: int
    at: float
    hit: str
    code: int | None
    seconds: float
    wrong: str


def environment() -> dict[str, str]:
    """This environment with the repository on Python's path and one thread."""
    return os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def attempt(number: int, at: float, bound: float, after: str = "") -> Try:
    """Start a process, send the signal, and check what remains.

    Args:
        at: seconds from the start of the process, or from a milestone.
        after: the milestone.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *RUN, "--out", folder], cwd=REPO, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # not ignored by inheritance
        )  # fmt: skip
        said = ["", ""]
        readers = [
            threading.Thread(target=lambda k=k, pipe=pipe: said.__setitem__(k, pipe.read()))
            for k, pipe in enumerate((process.stdout, process.stderr))
        ]
        for reader in readers:
            reader.start()
        while after and process.poll() is None and not list(out.rglob(after)):
            time.sleep(0.002)
        begun = time.perf_counter() if after else begun
        try:
            process.wait(max(0.0, at - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        sent = time.perf_counter()
        reached = sum(bool(list(out.rglob(name))) for name in MILESTONES)
        try:
            code = process.wait(bound)
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGABRT)  # makes it print its stack
            process.wait()
        seconds = time.perf_counter() - sent
        for reader in readers:
            reader.join()
        return Try(number, at, NAMES[reached], code, seconds, problem(number, code, out, *said))


def problem(number: int, code: int | None, out: Path, said: str, error: str) -> str:
    """What is wrong with how a process ended; "" if nothing is."""
    ours = str(REPO / "diffusion") in error
    if code is None:
        return f"it did not end: {(said + error)[-4000:]!r}"
    if code == 1 and "Fatal Python error: init_" in error and not ours:  # before any code but Python's
        return f"files of a process that had not begun: {left}" if (left := list(out.iterdir())) else ""
    if "Traceback" in error + said and (ours or code != -number):
        return f"code {code}, a traceback: {error[-2500:]!r}"
    if stale := list(out.rglob(".*.tmp-*")):
        return f"half-written: {stale[0].name}"
    from diffusion.support import runs

    for path in out.rglob("*.ckpt"):
        try:
            runs.read_checkpoint(path)
        except (ValueError, OSError) as broken:
            return str(broken)
    steps = max((runs.newest_step(run) or 0 for run in out.rglob("version_*") if run.is_dir()), default=0)
    if code == 0 and not (steps == STEPS and list(out.rglob("denoising.gif"))):
        return f"code 0 at step {steps}: {error[-500:]!r}"
    if code == -number:  # killed by Python's default handler: check whether our code had run
        return f"code {code} after the project's code began: {error[-800:]!r}" if ours or said else ""
    return "" if code in (0, CODES[number]) else f"code {code}: {error[-800:]!r}"


def bench(tries: int, at_once: int, seed: int, bound: float, whole: float) -> list[Try]:
    """All tries, a few in parallel."""
    draw = random.Random(seed)
    plan = []
    for k in range(tries):
        after = draw.choice(MILESTONES) if k % 2 else ""
        plan.append((draw.choice(list(CODES)), draw.uniform(0, 2.0 if after else 1.05 * whole), after))
    done: list[Try] = []

    def one(job: tuple[int, float, str]) -> None:
        number, at, after = job
        found = attempt(number, at, bound, after)
        done.append(found)
        if found.wrong:
            print(f"{signal.Signals(found.number).name} at {found.at:.2f} s, {found.hit}: {found.wrong}", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, plan))
    return done


def lasts(at_once: int) -> float:
    """Seconds that an uninterrupted run takes, with as many in parallel as in the benchmark."""
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(lambda _: attempt(signal.SIGINT, 600.0, 60.0), range(at_once)))
        if any(t.code != 0 or t.wrong for t in found):
            raise RuntimeError(f"the uninterrupted run failed: {found}")
    begun = time.perf_counter()
    attempt(signal.SIGINT, 600.0, 60.0)
    return time.perf_counter() - begun


def table(done: list[Try]) -> str:
    """What was hit, per signal, with exit codes and the longest time to the end, in Markdown."""
    rows = ["| signal | when | tries | exit codes | longest, s | lost |", "|---|---|---|---|---|---|"]
    for number in CODES:
        for hit in NAMES:
            mine = [t for t in done if t.number == number and t.hit == hit]
            codes = ", ".join(f"{code}: {n}" for code, n in sorted(Counter(str(t.code) for t in mine).items()))
            if mine:
                lost = sum(bool(t.wrong) for t in mine)
                longest = max(t.seconds for t in mine)
                cells = (signal.Signals(number).name, hit, len(mine), codes, f"{longest:.1f}", lost)
                rows.append("| " + " | ".join(map(str, cells)) + " |")
    rows.append(f"| all | | {len(done)} | | {max(t.seconds for t in done):.1f} | {sum(bool(t.wrong) for t in done)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=200, help="number of tries (default 200)")
    parser.add_argument("--at-once", type=int, default=2, help="processes in parallel (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the signal times (default 0)")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds from the signal to the end (default 60)")
    parser.add_argument("--out", type=Path, help="also write the table to this .md file")
    args = parser.parse_args()
    sys.path.insert(0, str(REPO))
    whole = lasts(args.at_once)
    done = bench(args.tries, args.at_once, args.seed, args.bound, whole)
    text = table(done)
    print(text)
    if args.out:
        import torch

        machine = f"{os.cpu_count()} CPU cores, Python {'.'.join(platform.python_version_tuple()[:2])}"
        command = f"python benchmarks/interrupts.py --tries {args.tries} --at-once {args.at_once} --seed {args.seed}"
        version = ".".join(torch.__version__.split(".")[:2])
        head = f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine}, torch {version}"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            f"# Signals at random times\n\n{head}; an uninterrupted run takes {whole:.0f} s.\n\n{text}\n"
        )
    return int(any(t.wrong for t in done))


if __name__ == "__main__":
    sys.exit(main())
