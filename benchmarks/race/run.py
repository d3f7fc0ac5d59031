"""One entry of the race, in a process of its own: it trains to every mark and writes samples of each.

Training time is the CPU time of this process, which has one thread: the time on the wall if the core is its own, and
nearly independent of what else runs. Set-up, copies of weights and sampling are not counted.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import machine
from benchmarks.race import environment, images, ours
from benchmarks.race.clustered import KINDS
from benchmarks.race.entries import ENTRIES, entrant
from diffusion.support.files import atomic

FEW = 4  # images, by which the time of all is estimated
LIMIT = 200.0  # seconds of sampling at a mark, above which only LEAST images are made
LEAST = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", required=True, help="marks, ascending, comma-separated")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--n", type=int, required=True, help="samples")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    marks = [float(m) for m in args.minutes.split(",")]
    race = mine if ENTRIES[args.name].kind is None else theirs
    for mark, found in race(args, marks):
        record, pictures, y = found
        record |= {"name": args.name, "data": args.data, "minutes": mark, "seed": args.seed, "machine": machine()}
        record |= {"versions": environment.versions(), "load": os.getloadavg()[0]}
        stem = f"{args.data}-{args.name.replace(' ', '_')}-{mark:g}m-seed{args.seed}"
        raw = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        with atomic(args.out / f"{stem}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, images=raw, labels=np.full(len(raw), -1) if y is None else y.numpy())
        with atomic(args.out / f"{stem}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


def timed(make) -> tuple[float, object]:
    """CPU seconds of this process for a piece of work, and its result."""
    begun = time.process_time()
    found = make()
    return time.process_time() - begun, found


def mine(args: argparse.Namespace, marks: list[float]):
    """This project's entry: one training per mark."""
    y, entry = images.opened(args.data).arrays("train")[1], ENTRIES[args.name]
    given = "labels" if entry.labels else "clusters" if entry.clusters else "nothing"
    told = {"nothing": "", "labels": ", with labels", "clusters": f", {KINDS[args.data].count} clusters as labels"}
    how = ours.sampler_of(args.data, given)
    for mark in marks:
        run = ours.trained(args.data, given, mark, args.seed, args.out)
        asked = ours.asked(args.data, given, y, args.n, args.seed)
        spent, found = timed(lambda r=run, a=asked: ours.sampled(r.folder, how, a, args.n, args.seed))
        yield mark, ({
            "steps": run.steps, "batch": run.batch, "train_s": run.cpu, "wall_s": run.wall, "n": args.n,
            "parameters": run.parameters, "sample_s": 1000 * spent / args.n,
            "recipe": f"`{ours.command(args.data)}`" + told[given],
            "sampled": f"{how['sampler']} {how['steps']}" + (f", guidance {how['scale']:g}" if "scale" in how else ""),
        }, found, asked if entry.labels else None)  # fmt: skip


def theirs(args: argparse.Namespace, marks: list[float]):
    """Another package's entry: one training, with copies of the weights at the marks."""
    raw, y = images.opened(args.data).arrays("train")
    one = entrant(args.name, args.data, raw, y)
    cpu = wall = 0.0
    steps, kept = 0, []
    for mark in marks:
        while cpu < 60 * mark:
            begun = time.process_time(), time.perf_counter()
            one.step()
            cpu, wall, steps = cpu + time.process_time() - begun[0], wall + time.perf_counter() - begun[1], steps + 1
        kept.append((mark, {"steps": steps, "train_s": cpu, "wall_s": wall}, one.weights()))
        print(f"{args.name}: {steps:,} steps in {cpu:.0f} s ({wall:.0f} s on the wall)", flush=True)
    one.load(kept[0][2])
    each = timed(lambda: one.sample(FEW))[0] / FEW
    n = args.n if each * args.n < LIMIT else min(LEAST, args.n)
    for mark, record, weights in kept:
        one.load(weights)
        torch.manual_seed(args.seed)
        spent, (found, asked) = timed(lambda: one.sample(n))
        if one.documented:
            record |= {"documented": one.documented[0], "documented_s": one.documented[1] * 1000 * spent / n}
        record |= {"batch": one.batch, "recipe": one.recipe, "sampled": one.sampled, "parameters": one.parameters}
        yield mark, (record | {"n": n, "sample_s": 1000 * spent / n}, found.float(), asked)


if __name__ == "__main__":
    main()
