"""Quality of samples at equal training time: this project and other packages, in turn, on one core each.

    python -m benchmarks.race --data digits --minutes 1,2,5 [--seeds 0] [--only "ours;lucidrains"] [--out race]
        [--cores 0,1] [--n 500]
    python -m benchmarks.race --data digits --minutes 1,2,5 --report

The packages are installed into an environment of their own (`environment.py`). Each entry is a process with one thread,
whose training time is its CPU time; entries run one after the other on each core of --cores. Finished entries are kept
in --out and not repeated, so a race can be interrupted, and several commands on the same --out share the entries.
--report judges all samples by the data set's own classifier, which no entry has seen, prints the table, and writes
benchmarks/results/race-DATA.json and the plot docs/images/race_DATA.png.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.race import environment, report
from benchmarks.race.entries import ENTRIES
from benchmarks.race.images import DATA, opened


class Task:
    """One entry with one seed, and the file that marks it as taken."""

    def __init__(self, name: str, seed: int, args: argparse.Namespace) -> None:
        self.name, self.seed, self.args = name, seed, args
        self.stem = f"{args.data}-{name.replace(' ', '_')}"
        self.taken = args.out / f"{self.stem}-seed{seed}.taken"

    @property
    def done(self) -> bool:
        """Whether samples of every mark are there."""
        marks = map(float, self.args.minutes.split(","))
        return all((self.args.out / f"{self.stem}-{mark:g}m-seed{self.seed}.json").is_file() for mark in marks)

    def run(self, core: int | None) -> None:
        """Train and sample in a process of its own, unless another command does or did."""
        if self.done:
            return
        try:
            self.taken.touch(exist_ok=False)
        except FileExistsError:
            return
        command = [
            environment.python(), "-m", "benchmarks.race.run", self.name, "--data", self.args.data,
            "--minutes", self.args.minutes, "--seed", self.seed, "--n", self.args.n, "--out", self.args.out,
        ]  # fmt: skip
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        log = self.taken.with_suffix(".log")
        print(f"{self.name}, seed {self.seed}: {log}", flush=True)
        try:
            with log.open("w") as file:
                code = subprocess.run(
                    [*pinned, *map(str, command)], stdout=file, stderr=file, env=environment.variables(),
                    cwd=environment.REPO,
                ).returncode  # fmt: skip
        finally:
            self.taken.unlink()
        if code:
            print(f"{self.name}, seed {self.seed}: failed with {code}, see {log}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=str.lower, choices=list(DATA))
    parser.add_argument("--minutes", default="1,2,5", help="of training, ascending (default 1,2,5)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default 0)")
    parser.add_argument("--only", default="", help="entries, separated by semicolons (default all)")
    parser.add_argument("--n", type=int, default=500, help="samples, at most the test images (default 500)")
    parser.add_argument("--cores", default="", help="cores to run on, one entry on each at a time (default: any one)")
    parser.add_argument("--out", type=Path, default=Path("race"), help="folder of samples and logs (default race)")
    parser.add_argument("--report", action="store_true", help="judge the samples; print the table; write the plot")
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report:
        return report.made(args.data, args.out)
    wanted = [name.strip() for name in args.only.split(";") if name.strip()] or list(ENTRIES)
    if unknown := [name for name in wanted if name not in ENTRIES]:
        sys.exit(f"--only {unknown[0]}: there are: {'; '.join(ENTRIES)}")
    args.n = min(args.n, len(opened(args.data).store("test")[0]))
    environment.python()
    tasks = [Task(name, int(seed), args) for seed in args.seeds.split(",") for name in wanted]
    cores = [int(core) for core in args.cores.split(",")] if args.cores else [None]
    free = list(cores)

    def work(task: Task) -> None:
        core = free.pop()
        try:
            task.run(core)
        finally:
            free.append(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        list(pool.map(work, tasks))
    return 0 if all(task.done for task in tasks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
