"""All that is worth measuring on a GPU that is rented for half an hour, in order of value, in one command.

    python -m benchmarks.gpu_half_hour --minutes 28 [--out FOLDER] [--init LAST_OUT] [--only NAME ...] [--width 96]
    python -m benchmarks.gpu_half_hour --list
    python -m benchmarks.gpu_half_hour --smoke           every step at toy size, on a CPU

A step is a process with its own limit. It starts if its limit fits into the time left, and is killed with its children
when it reaches it. What fails is recorded with the end of its output, and the next one goes on; what lacks a package or
data is skipped with this reason. CIFAR-10 is trained for the rest of the time, from the weights that were brought home
the last time (--init, a .safetensors file or the folder --out of then).

--out (by default $OUT, else half_hour) has at most 8 files of 16 MiB, complete after every step: results.json,
logs.tar.gz, trainings.tar (grids, films, watch.csv, configurations) and weights.tar.0 .. 4 (averaged weights in
float16, split; `cat weights.tar.* | tar x`).
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.half_hour.pack import joined, pack
from benchmarks.half_hour.plan import Call, Processes, Step, carry_out, watchdog
from benchmarks.half_hour.steps import steps
from diffusion.support.paths import data_root

RESERVE = 20.0  # seconds at the end for packing
WIDTH = 96  # of CIFAR-10's network: 20 million parameters, 40 MB in float16


def lacking(step: Step) -> str:
    """Why a step cannot run here, or ""."""
    missing = [name for name in step.needs if find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if step.data and not any(any(data_root().glob(pattern)) for pattern in step.data):
        return f"no {' or '.join(step.data)} in {data_root()}"
    return ""


def device() -> str:
    """The device and the versions, in words."""
    import torch

    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{chip}, Python {platform.python_version()}, torch {torch.__version__}"


def half_hour(
    chosen: list[Step],
    seconds: float,
    out: Path,
    work: Path,
    call: Call,
    began: float,
    clock: Callable[[], float] = time.perf_counter,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Carry out steps and pack after each; returns the results.

    Args:
        began: when the time began, on `clock`.
        facts: to be kept in results.json.
    """
    records: list[dict[str, Any]] = []
    whole = pack(out, work, {**(facts or {}), "steps": records})
    for record in carry_out(chosen, began + seconds - RESERVE, call, lacking, clock):
        records.append(record)
        spent = f" in {record['seconds']:,.0f} s" if "seconds" in record else f": {record['reason']}"
        print(f"{clock() - began:6.0f} s  {record['name']}: {record['state']}{spent}", flush=True)
        for line in record.get("tail", "").strip().splitlines()[-3:]:
            print(f"          {line}", flush=True)
        whole = pack(out, work, {**(facts or {}), "steps": records})
    return whole


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=28, help="of all steps together; a hard bound (default 28)")
    add("--out", type=Path, default=Path(os.environ.get("OUT") or "half_hour"))
    add("--init", type=Path, help="weights for CIFAR-10 to begin with: a .safetensors file, or the --out of last time")
    add("--width", type=int, default=WIDTH, help=f"of CIFAR-10's network (default {WIDTH})")
    add("--only", nargs="+", default=[], metavar="NAME", help="steps")
    add("--smoke", action="store_true", help="every step at toy size")
    add("--list", action="store_true", help="print the steps and do nothing")
    args = parser.parse_args()
    try:
        chosen = steps(args.smoke, tuple(args.only), args.init is not None)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        for step in chosen:
            limit = f"{step.limit:,.0f} s" if step.limit else f"the rest, at least {step.least:,.0f} s"
            reason = lacking(step)
            print(f"{step.name:15} {limit:26} {step.why}{f'  [skipped: {reason}]' * bool(reason)}")
        return
    args.out, args.init = args.out.resolve(), args.init and args.init.resolve()
    os.environ["DIFFUSION_DATA"] = str(data_root().resolve())
    os.chdir(Path(__file__).resolve().parents[1])  # for configs/ and tests/
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    work = Path(tempfile.mkdtemp(prefix="half-hour-"))
    words = {"width": str(args.width)}
    processes = Processes(sys.executable, work, words)
    dog = watchdog(60 * args.minutes - (time.perf_counter() - began), processes)
    if args.init is not None:
        words["init"] = str(joined(args.init, work / "init" / "unpacked"))  # no step's own folder
    facts = {"device": device(), "date": datetime.now(timezone.utc).isoformat("T", "seconds"), "minutes": args.minutes,
             "smoke": args.smoke, "init": str(args.init or "")}  # fmt: skip
    print(f"{facts['device']}; {args.minutes:g} minutes, to {args.out}", flush=True)
    try:
        whole = half_hour(chosen, 60 * args.minutes, args.out, work, processes, began, facts=facts)
    finally:
        processes.kill(over=True)
        shutil.rmtree(work, ignore_errors=True)
        dog.cancel()
    for line in whole["left_out"]:
        print(f"left out: {line}")
    if bad := [r["name"] for r in whole["steps"] if r["state"] in ("failed", "timed out")]:
        raise SystemExit(f"not done: {', '.join(bad)}")


if __name__ == "__main__":
    main()
