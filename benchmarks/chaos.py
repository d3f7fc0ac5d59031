"""Kill and resume a training run repeatedly, and check that it ends like an uninterrupted one.

    python benchmarks/chaos.py [--kills 50] [--runs 1] [--at-once 1] [--out chaos.md]

A short run is trained once without interruption. Then the same command, with --resume auto, is started and killed
(SIGKILL, which a program cannot handle) at random times, and finally left to finish. The times cover startup, training
with a checkpoint every second step, the writing of files, validation and the first steps after a resume: half of the
kills wait for a random time, half for a random step or a file that is being written. Each try is a fork of one process
that has imported the package, so that a kill costs a second rather than the time of the imports.

A run is lost if a try does not find an existing checkpoint, starts another folder, fails, or ends differently from the
uninterrupted one. The two last checkpoints are compared completely, and the curves. --runs repeats the bench, each time
with its own seed and some of them in parallel, so that the machine is busy.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

import diffusion.training.run  # noqa: E402, F401 - for the forks
from diffusion.cli import main as diffusion  # noqa: E402
from diffusion.support import runs  # noqa: E402
from diffusion.support.paths import CONFIGS  # noqa: E402

RUN = [
    "fit", "-c", str(CONFIGS / "digits.yaml"), "--trainer.accelerator", "cpu", "--trainer.max_epochs", "5",
    "--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "3", "--trainer.log_every_n_steps", "1",
    "--trainer.accumulate_grad_batches", "2", "--model.objective.times", "LossAware",
    "--model.objective.times.bins", "4", "--model.net.widths", "[8,16]", "--model.net.attention", "1",
    "--model.net.dropout", "0.1", "--model.sampler.steps", "2", "--data.batch_size", "32", "--data.limit", "1280",
    "--samples.every_n_epochs", "4", "--samples.n", "4", "--gif.n", "1", "--gif.frames", "2",
    "--diagnostics.images", "0", "--checkpoint.every_n_steps", "2", "--resume", "auto",
]  # fmt: skip


def start(out: Path) -> int:
    """Start or resume the run in a child process; returns its id."""
    process = os.fork()
    if process:
        return process
    with open(out / "said.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    with contextlib.suppress(BaseException):
        code = diffusion([*RUN, "--out", str(out)])
    sys.stdout.flush()
    os._exit(code)


def over(process: int) -> int | None:
    """The exit status of a process, if it has ended."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def newest(out: Path) -> int:
    """The step of the newest checkpoint of any run, by its name; 0 if there is none."""
    return max((runs.newest_step(run) or 0 for run in runs.versions(out / "digits")), default=0)


def writing(out: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(out.glob("digits/version_*/checkpoints/.*.tmp-*"))


def kill(out: Path, kind: str, draw: random.Random) -> str:
    """Start, wait for the chosen moment, kill; returns what was hit."""
    before, began = newest(out), time.perf_counter()
    process = start(out)
    moment = draw.uniform(0, 4.0)
    target = before + draw.randint(1, 6)
    while time.perf_counter() - began < 60:
        if (code := over(process)) is not None:
            return "the end" if code == 0 else f"error {code}"
        if kind == "time" and time.perf_counter() - began > moment:
            break
        if kind == "step" and newest(out) >= target:
            break
        if kind == "write" and newest(out) >= min(target, before + 4) and writing(out):
            break
        time.sleep(0.0005)
    hit = "a file being written" if writing(out) else "start" if newest(out) == before else "training"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return hit


def contents(run: Path) -> dict:
    """The training state in the last checkpoint, by its path."""

    def walk(value: object, name: str) -> dict:
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in walk(item, f"{name}/{key}").items()}
        if isinstance(value, (list, tuple)):
            return {k: v for i, item in enumerate(value) for k, v in walk(item, f"{name}/{i}").items()}
        return {name: value}

    read = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "times", "global_step", "epoch")
    kept = {k: read[k] for k in parts} | {
        "EMA": read["callbacks"]["EMA"],
        "Diagnostics": read["callbacks"]["Diagnostics"],
    }
    return walk(kept, "")


def curves(run: Path) -> dict:
    """The points (step, value) of every curve except those of the speed and the machine."""
    events = EventAccumulator(str(run)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "train/images_per_s" and not tag.startswith("watch/")
    }


def equal(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def bench(kills: int, seed: int, folder: Path) -> dict:
    """Run the bench; returns its result."""
    draw = random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir(), broken.mkdir()
    began = time.perf_counter()
    if os.waitstatus_to_exitcode(os.waitpid(start(whole), 0)[1]):
        raise RuntimeError((whole / "said.txt").read_text())
    seconds = time.perf_counter() - began
    hits: Counter[str] = Counter()
    lost = back = done = ends = 0
    kinds = [draw.choice(("time", "step", "write")) for _ in range(kills)]
    while done < kills:
        before = newest(broken)
        hit = kill(broken, kinds[done], draw)
        if hit == "the end":  # the run finished before the kill: start another
            ends += 1
            lost += not report(whole, broken)["equal"]
            broken = folder / f"broken{ends}"
            broken.mkdir()
            continue
        hits[hit] += 1
        done += 1
        if hit.startswith("error"):
            lost += 1
        back += newest(broken) < before
    code = os.waitstatus_to_exitcode(os.waitpid(start(broken), 0)[1])
    found = report(whole, broken) if code == 0 else {"equal": False}
    folders = max(len(runs.versions(place)) for place in folder.glob("broken*/digits"))
    lost += back + (code != 0) + (not found["equal"]) + (folders > 1)
    return found | {
        "kills": kills, "hits": hits, "lost": lost, "runs": ends + 1, "folders": folders,
        "seconds": time.perf_counter() - began, "whole": seconds, "code": code, "folder": broken,
    }  # fmt: skip


def report(whole: Path, broken: Path) -> dict:
    """The comparison of the two runs."""
    last = next(run for run in reversed(runs.versions(broken / "digits")) if runs.checkpoints(run))
    a, b = contents(whole / "digits" / "version_0"), contents(last)
    lines, again = curves(whole / "digits" / "version_0"), curves(last)
    differ = [k for k in a.keys() | b.keys() if not equal(a.get(k), b.get(k))]
    bent = [k for k in lines.keys() | again.keys() if lines.get(k) != again.get(k)]
    stale = list(broken.rglob(".*.tmp-*"))
    return {
        "equal": not differ and not bent and not stale, "values": len(a), "differ": differ, "bent": bent,
        "points": sum(map(len, lines.values())), "curves": len(lines), "steps": a["/global_step"], "stale": stale,
    }  # fmt: skip


def table(found: dict) -> str:
    """The result in Markdown."""
    rows = [
        ("SIGKILLs", found["kills"]),
        *((f"... which hit {name}", count) for name, count in sorted(found["hits"].items())),
        ("runs taken to their end", found["runs"]),
        ("optimizer steps of a run", found.get("steps", "-")),
        ("seconds of the uninterrupted run", f"{found['whole']:.0f}"),
        ("seconds of the bench", f"{found['seconds']:.0f}"),
        ("tensors and numbers compared", found.get("values", "-")),
        ("... that differ", len(found.get("differ", "?"))),
        ("points of curves compared", found.get("points", "-")),
        ("... curves that differ", len(found.get("bent", "?"))),
        ("half-written files left", len(found.get("stale", "?"))),
        ("folders of a run", found["folders"]),
        ("lost runs", found["lost"]),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def many(count: int, at_once: int, kills: int, seed: int) -> list[dict]:
    """Run the bench several times in child processes; returns each result."""

    def one(k: int) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "found.json"
            argv = [sys.executable, "-W", "ignore", __file__, "--kills", str(kills), "--seed", str(seed + k)]
            done = subprocess.run([*argv, "--record", str(record)], capture_output=True, text=True)
            found = json.loads(record.read_text()) if record.exists() else {"lost": 1, "error": done.stderr[-2000:]}
            print(f"seed {seed + k}:", f"LOST {found} {done.stderr}" if found["lost"] else "nothing lost", flush=True)
            return found

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(count)))


def summary(found: list[dict]) -> str:
    """The results of several benches in Markdown."""
    hits = sum((Counter(f.get("hits", {})) for f in found), Counter())
    rows = [
        ("benches", len(found)),
        ("SIGKILLs", sum(hits.values())),
        *((f"... which hit {name}", count) for name, count in sorted(hits.items())),
        ("runs taken to their end", sum(f.get("runs", 0) for f in found)),
        ("tensors and numbers compared in each", max(f.get("values", 0) for f in found)),
        ("... that differ, in all", sum(len(f.get("differ", "?")) for f in found)),
        ("points of curves compared in each", max(f.get("points", 0) for f in found)),
        ("... curves that differ, in all", sum(len(f.get("bent", "?")) for f in found)),
        ("folders of a run, at most", max(f.get("folders", 0) for f in found)),
        ("benches with anything lost", sum(bool(f["lost"]) for f in found)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def write(path: Path, text: str, command: str) -> None:
    """The table with the command, the date and the machine."""
    python = ".".join(platform.python_version_tuple()[:2])
    version = ".".join(torch.__version__.split(".")[:2])
    head = f"`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, Python {python}, torch {version}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Killed and resumed\n\n{head}\n\n{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times (default 0)")
    parser.add_argument("--runs", type=int, default=1, help="number of benches, each with the next seed (default 1)")
    parser.add_argument("--at-once", type=int, default=1, help="benches in parallel (default 1)")
    parser.add_argument("--out", type=Path, help="also write the table to this .md file")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # the result, for the parent process
    args = parser.parse_args()
    command = f"python benchmarks/chaos.py --kills {args.kills} --seed {args.seed}"
    if args.runs > 1:
        every = many(args.runs, args.at_once, args.kills, args.seed)
        text, lost = summary(every), any(f["lost"] for f in every)
        command += f" --runs {args.runs} --at-once {args.at_once}"
    else:
        torch.set_num_threads(1)  # a fork cannot use the threads of its parent
        with tempfile.TemporaryDirectory() as folder:
            found = bench(args.kills, args.seed, Path(folder))
            said = (found.pop("folder") / "said.txt").read_text()
        text, lost = table(found), found["lost"]
        if args.record:
            args.record.write_text(json.dumps(found, default=str))
        if lost:
            print(f"differ: {found.get('differ')}\nbent: {found.get('bent')}\n{said[-3000:]}", file=sys.stderr)
    print(text)
    if args.out:
        write(args.out, text, command)
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
