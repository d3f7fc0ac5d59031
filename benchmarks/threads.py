"""Threads beside a busy program: seconds of a training step with one thread and with two, by how OpenMP waits.

    python -m benchmarks.threads [--seconds 3] [--rounds 3] [--threads 2]

A program that only counts occupies a core meanwhile. Each side is a process of its own, since OpenMP reads its settings
once; they take steps in turn. CPU time shows what waiting costs: threads that wait actively compute nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

STEPS = """
import sys, time, torch
from diffusion.nets import AttentionUNet
torch.manual_seed(0)
net = AttentionUNet(1, widths=(32, 64, 64), num_classes=10)
x, t, y = torch.randn(16, 1, 8, 8), torch.linspace(1, 900, 16), torch.arange(16) % 10
step = lambda: net(x, t, y).square().mean().backward()
step()
print("ready", flush=True)
for line in sys.stdin:
    n, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < float(line):
        step()
        n += 1
    print((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n, flush=True)
"""
BUSY = "while True: pass"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    from benchmarks.common import machine, save

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    several = {"OMP_NUM_THREADS": str(args.threads)}
    sides = {
        "1 thread": {"OMP_NUM_THREADS": "1"},
        f"{args.threads} threads": several,
        f"{args.threads} threads, OMP_WAIT_POLICY=PASSIVE": several | PASSIVE,
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    running, busy = {}, None
    try:
        for name, settings in sides.items():
            running[name] = subprocess.Popen(
                [sys.executable, "-c", STEPS], env=plain | settings, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            running[name].stdout.readline()
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        time.sleep(1)
        for _ in range(args.rounds):
            for name, side in running.items():
                side.stdin.write(f"{args.seconds}\n")
                side.stdin.flush()
                wall, cpu = map(float, side.stdout.readline().split())
                found[name].append((wall, cpu))
    finally:
        for process in filter(None, (busy, *running.values())):
            process.kill()
            process.wait()
    print(f"{machine()}; beside a busy program, {args.rounds} rounds of {args.seconds:g} s")
    rows = []
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"side": name, "step_s": wall, "step_cpu_s": cpu, "rounds": times})
        print(f"{name:36} {1e3 * wall:8.1f} ms per step, {1e3 * cpu:8.1f} ms of CPU time")
    print(f"written: {save('threads', {'rows': rows})}")


if __name__ == "__main__":
    main()
