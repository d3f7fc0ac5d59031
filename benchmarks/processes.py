"""A signal to one process of a distributed run: exit codes, time to stop, and whether the run resumes.

    python -m benchmarks.processes [--tries 10] [--processes 2] [--out benchmarks/results/processes.md]

Each try starts `diffusion fit` in as many processes as torchrun would, with its environment, sends SIGTERM to one of
them at a random moment of the training, waits for all, and reads the checkpoint. At the end one of the runs of each
process is resumed and finished. The processes are forked from a server that has imported the package, so they start
immediately.
"""

import argparse
import multiprocessing
import os
import platform
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

TINY = [
    "fit", "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.check_val_every_n_epoch", "1",
    "--trainer.log_every_n_steps", "5", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
    "--model.sampler.steps", "5", "--data.limit", "320", "--samples.n", "4", "--gif.n", "1", "--gif.frames", "2",
    "--checkpoint.every_n_steps", "10",
]  # fmt: skip


class Group:
    """Processes with torchrun's environment; their output goes to rank0.txt, rank1.txt, ...

    A context manager: no process outlives it, or the process that started it.
    """

    def __init__(self, size: int, work: Callable, folder: Path, *args, environment: dict | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["diffusion.training.run"])
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [folder / f"rank{rank}.txt" for rank in range(size)]
        self.processes = []
        for rank, file in enumerate(self.files):
            place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            place = {k: str(v) for k, v in (place if size > 1 else {}).items()} | (environment or {})
            self.processes.append(context.Process(target=begin, args=(place, file, work, *args)))

    def __enter__(self) -> "Group":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def codes(self, seconds: float) -> list[int | None]:
        """Exit codes of all processes, None for those still alive after the given seconds."""
        until = time.monotonic() + seconds
        while (left := [p.sentinel for p in self.processes if p.is_alive()]) and time.monotonic() < until:
            wait(left, until - time.monotonic())
        return [p.exitcode for p in self.processes]

    def said(self) -> str:
        return "".join(f"--- {f.name}\n{f.read_text()}" for f in self.files if f.exists())


def begin(place: dict[str, str], file: Path, work: Callable, *args) -> None:
    """Runs in a new process: sets the environment, redirects output to a file, and exits with the value of work."""
    with open(file, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = (open(k, "w", buffering=1, closefd=False) for k in (1, 2))
    os.environ |= place
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    from pytorch_lightning.utilities import rank_zero_only

    rank_zero_only.rank = int(place.get("RANK", 0))  # the server imported it before the rank was known
    import torch

    torch.set_num_threads(1)
    sys.exit(work(*args))


def command(*argv: str) -> int:
    """`diffusion ...`."""
    from diffusion.cli import main

    return main(list(argv))


def newest(out: Path) -> int:
    """The step of the newest checkpoint of a run."""
    return max((int(p.stem[4:]) for p in out.glob("*/version_0/checkpoints/step*.ckpt")), default=0)


def attempt(size: int, rank: int, out: Path, pick: random.Random, limit: float) -> dict:
    """One try: exit codes, seconds until it stopped, and the step from which it can resume."""
    argv = [*TINY, "--out", str(out), "--trainer.max_epochs", "1000"]
    with Group(size, command, out, *argv) as group:
        begun = time.monotonic()
        while not newest(out):  # training is under way
            if time.monotonic() - begun > limit or None not in group.codes(0.05):
                raise RuntimeError(f"training did not start:\n{group.said()}")
        time.sleep(pick.uniform(0, 3))  # in steps, validation or pictures
        sent = time.monotonic()
        os.kill(group.processes[rank].pid, signal.SIGTERM)
        codes = group.codes(limit)
        seconds = time.monotonic() - sent
        if None in codes:
            print(group.said(), file=sys.stderr)
    return {"codes": codes, "seconds": seconds, "step": newest(out)}


def resume(size: int, out: Path, limit: float) -> tuple[list[int | None], int, int]:
    """Resume a run for two epochs: exit codes, the reported first step, and the last step."""
    from diffusion.support.runs import read_checkpoint

    last = out / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    epoch = read_checkpoint(last)["epoch"]
    argv = [*TINY, "--out", str(out), "--resume", "auto", "--trainer.max_epochs", str(epoch + 3)]
    with Group(size, command, out, *argv) as group:
        codes = group.codes(limit)
        said = group.files[0].read_text()
    found = re.search(r"resuming from .*: step ([\d,]+)", said)
    begun = int(found.group(1).replace(",", "")) if found else -1
    return codes, begun, newest(out)


def table(rows: dict[int, list[dict]], resumed: dict[int, tuple]) -> str:
    """The tries of each process, one line each."""
    lines = ["| SIGTERM to | tries | all exit 143 | hangs | seconds to stop: median, most | resumed at, to |"]
    lines.append("|---|---|---|---|---|---|")
    for rank, tries in rows.items():
        seconds = [t["seconds"] for t in tries]
        right = sum(set(t["codes"]) == {143} for t in tries)
        hangs = sum(None in t["codes"] for t in tries)
        codes, begun, last = resumed[rank]
        end = f"{begun:,}, {last:,}" if set(codes) == {0} else f"exit {codes}"
        lines.append(
            f"| process {rank} | {len(tries)} | {right} | {hangs} | {statistics.median(seconds):.1f}, "
            f"{max(seconds):.1f} | {end} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a try counts as hung")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/processes.md"))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows, resumed, pick = {}, {}, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(args.processes):
            rows[rank] = []
            for k in range(args.tries):
                out = Path(folder) / f"{rank}-{k}"
                rows[rank].append(attempt(args.processes, rank, out, pick, args.limit))
                print(f"process {rank}, try {k}: {rows[rank][-1]}", flush=True)
            resumed[rank] = resume(args.processes, out, args.limit)
    from torch import __version__

    where = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, torch {__version__.partition('+')[0]}"
    words = f"python -m benchmarks.processes --tries {args.tries} --processes {args.processes}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(f"# A signal to one process\n\n`{words}` ({where}, gloo)\n\n{table(rows, resumed)}\n")
    print(args.out.read_text())
    return 0 if all(set(t["codes"]) == {143} for tries in rows.values() for t in tries) else 1


if __name__ == "__main__":
    sys.exit(main())
