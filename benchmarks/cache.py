"""Images of a prepared folder, read from its files, against the same images in memory, and beyond memory.

    python -m benchmarks.cache parity [FOLDER] [--batch 128] [--block 40] [--rounds 9]
    python -m benchmarks.cache beyond [--images 1000000] [--size 64] [--memory 1] [--out FOLDER]

`parity`: training steps per second, in alternating blocks, from the files and from memory, with a small network, whose
steps are short; and the loader alone. Without a folder, 50,000 random images of 32x32 are written. `beyond`: one epoch
of a folder of random images, then `fit` with a small U-Net, in a process that may use `--memory` GiB, the kernel's page
cache included (requires the right to make a cgroup).
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import alternate, limited, machine, memory, ratio, said, save
from benchmarks.remote import Shards
from diffusion.data import Prepared
from diffusion.data.batches import Batches
from diffusion.data.store import everything
from diffusion.training.api import fit

NET = {
    "trainer.accelerator": "cpu", "model.net": "UNet", "model.net.width": 16, "model.net.mults": [1, 2, 2],
    "model.net.attention": [], "data.batch_size": 32, "samples.every_n_epochs": 0, "gif.n": 1, "gif.frames": 2,
    "diagnostics.images": 0, "samples.n": 1, "trainer.limit_val_batches": 0,
}  # fmt: skip


def generate(folder: Path, images: int, size: int) -> None:
    """Write a prepared folder of random images."""
    stored, split = Shards(images, size), (np.arange(images) % 50 == 49).astype(np.uint8)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for number, facts in enumerate(shards := [stored.facts(k) for k in range(len(stored.counts))]):
        with open(folder / facts["file"], "wb") as file:
            for part in stored.read(number):
                file.write(part)
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    np.save(folder / "split.npy", split)
    np.save(folder / "rows.npy", np.arange(images))
    (folder / "dataset.json").write_text(json.dumps(stored.described(split, shards)))


def epoch(folder: Path, gib: float, batch: int, pipe) -> None:
    """Read one epoch within a limit of memory, and send the figures through the pipe."""
    limited(gib)
    began = time.perf_counter()
    data = Prepared(str(folder), batch_size=batch)
    batches, points, seen = data.train_dataloader(), [], 0
    total = len(batches)
    for k, (x0, _) in enumerate(batches):
        if not k:
            first, started = time.perf_counter() - began, time.perf_counter()
        seen += len(x0)
        if k % (total // 10) == 0:
            points.append(memory()[0] / 2**20)
    rate = seen / (time.perf_counter() - started)
    found = {"images": seen, "first_batch_s": first, "images_per_s": rate, "memory_mib": points}
    spent = []
    for steps in (2, 2, 62):  # the first imports what training needs
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            fit(data="Prepared", max_steps=steps, out=out, settings=NET | {"data.folder": str(folder)})
        spent.append(time.perf_counter() - began)
    points.append(memory()[0] / 2**20)
    pipe.send(found | {"fit_of_2_steps_s": spent[1], "steps_per_s": 60 / (spent[2] - spent[1])})


def beyond(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        folder = Path(scratch) / "random"
        generate(folder, args.images, args.size)
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=epoch, args=(folder, args.memory, args.batch, there)
        )
        process.start()
        process.join()
        found = here.recv() if here.poll() else {"error": f"ended with {process.exitcode}"}
        print(json.dumps(found))
        gib = args.images * 3 * args.size**2 / 2**30
        print(f"{machine()}: {gib:.1f} GiB of images, {args.memory} GiB of memory")
        save("cache-beyond", {"folder_gib": gib, "limit_gib": args.memory, "batch": args.batch} | found)


def steps(batches: Batches, block: int):
    """A function that trains for a block of steps of a small network."""
    shape = batches.store.shape
    net = torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, shape[0], 3, padding=1)
    )
    optimizer = torch.optim.AdamW(net.parameters())

    def forever():
        for number in range(10**9):
            batches.set_epoch(number)
            yield from batches

    stream = forever()

    def train() -> None:
        for _ in range(block):
            x0, _ = next(stream)
            optimizer.zero_grad()
            (net(x0 + torch.randn_like(x0)) - x0).square().mean().backward()
            optimizer.step()

    def read() -> None:
        for _ in range(block):
            next(stream)

    return train, read


def parity(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if not args.folder:
            generate(Path(scratch) / "random", 50_000, 32)
        folder = args.folder or f"{scratch}/random"
        data = Prepared(folder, batch_size=args.batch)
        store, y = data.open("train")
        options = {"batch_size": args.batch, "shuffle": True, "drop_last": True}
        before = memory()[0]
        files = Batches(store, y, **options)
        opened = memory()[0]
        held = Batches(everything(store), y, **options)
        more = {"files": (opened - before) / 2**20, "memory": (memory()[0] - opened) / 2**20}
        sides = {"files": steps(files, args.block), "memory": steps(held, args.block)}
        results = {"folder": Path(folder).name, "shape": store.shape, "images": len(store), "added_mib": more}
        for which, name in enumerate(("training", "loader")):
            times = alternate({side: work[which] for side, work in sides.items()}, args.rounds)
            pair = ratio(times["memory"], times["files"])
            rate = {side: args.block * args.batch / sorted(t)[len(t) // 2] for side, t in times.items()}
            results[name] = {"images_per_s": rate, "files_over_memory": pair}
            print(
                f"{name}: {said(pair)} of the rate from memory; "
                + ", ".join(f"{k} {v:,.0f} images/s" for k, v in rate.items())
            )
        print(f"{machine()}: memory added by the images, MiB: {more}")
        save("cache-parity", results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["parity", "beyond"])
    parser.add_argument("folder", nargs="?", help="a prepared folder; default random images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--block", type=int, default=40, help="steps that are timed together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--memory", type=float, default=2, help="GiB")
    parser.add_argument("--out", help="where the images are written; default the folder of temporary files")
    args = parser.parse_args()
    {"parity": parity, "beyond": beyond}[args.what](args)


if __name__ == "__main__":
    main()
