"""A prepared folder behind an address: images per second, memory, disk and bytes fetched in epochs of training.

    python -m benchmarks.remote [--images 50000] [--size 64] [--window 32] [--epochs 2] [--batch 128] [--memory 1]

The images are random bytes, served over http on this machine by another process that makes each shard when it is asked
for, so two million images take no disk besides the two windows that are measured. `--step` is the milliseconds that the
training of a batch takes, during which the next shards are fetched. `--memory` limits the reader to so many GiB, the
kernel's page cache included (requires the right to make a cgroup).
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from benchmarks.common import limited, machine, memory, save

BLOCK = 1024  # images per shard, as `diffusion prepare` writes them


class Shards:
    """The .npy files of shards of random images; each is a part of the same random bytes, so that it costs nothing."""

    def __init__(self, images: int, size: int) -> None:
        self.counts = [min(BLOCK, images - first) for first in range(0, images, BLOCK)]
        self.shape = 3, size, size
        self.bytes = memoryview(np.random.default_rng(0).bytes(BLOCK * 3 * size**2 + len(self.counts)))

    def read(self, number: int) -> tuple[bytes, memoryview]:
        """The header of a shard's file, and its images."""
        count, file = self.counts[number], io.BytesIO()
        facts = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(file, facts)
        return file.getvalue(), self.bytes[number : number + count * int(np.prod(self.shape))]

    def facts(self, number: int) -> dict:
        """The entry of a shard in dataset.json."""
        digest = hashlib.sha256()
        for part in self.read(number):
            digest.update(part)
        return {"file": f"shards/{number:06d}.npy", "images": self.counts[number], "sha256": digest.hexdigest()}

    def described(self, split: np.ndarray, shards: list[dict]) -> dict:
        """The contents of dataset.json."""
        return {
            "format": 1, "name": "random", "shape": self.shape, "dtype": "uint8", "classes": [], "targets": [],
            "captions": False, "images": {"train": int((split == 0).sum()), "test": int(split.sum())}, "shards": shards,
            "statistics": {"mean": [127.5] * 3, "std": [73.9] * 3, "low": [0] * 3, "high": [255] * 3},
        }  # fmt: skip


def array(values: np.ndarray) -> bytes:
    """The .npy file of an array."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def serve(images: int, size: int, pipe) -> None:
    """Serve a prepared folder; its port, and later the bytes sent, go through the pipe."""
    stored = Shards(images, size)
    shards = [stored.facts(number) for number in range(len(stored.counts))]
    split = (np.arange(images) % 50 == 49).astype(np.uint8)
    facts = stored.described(split, shards)
    small = {
        "/dataset.json": json.dumps(facts).encode(),
        "/split.npy": array(split),
        "/rows.npy": array(np.arange(images)),
    }
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch(r"/shards/(\d{6}).npy", self.path)
            parts = stored.read(int(found[1])) if found else (small[self.path],)
            length = sum(map(len, parts))
            sent.append(length)
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            for part in parts:
                self.wfile.write(part)

        def log_message(self, *words) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    while pipe.recv():
        pipe.send(sum(sent))


def taken(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--window", type=int, default=32, help="shards of 1,024 images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--step", type=float, default=0, help="milliseconds that training takes per batch")
    parser.add_argument("--memory", type=float, default=0, help="GiB; 0 sets no limit")
    args = parser.parse_args()
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(args.images, args.size, other), daemon=True
    )
    process.start()
    if args.memory:
        limited(args.memory)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DIFFUSION_CACHE"] = cache
        from diffusion.data import Prepared

        url, rows = f"http://127.0.0.1:{pipe.recv()}", []
        data = Prepared(url, batch_size=args.batch, window=args.window)
        loader = data.train_dataloader()
        begin, most, sent = memory()[0], 0, 0
        for epoch in range(args.epochs):
            loader.set_epoch(epoch)
            started, first, images, peak = time.perf_counter(), 0.0, 0, 0
            for k, (x0, _) in enumerate(loader):
                first = first or time.perf_counter() - started
                images += len(x0)
                time.sleep(args.step / 1000)
                if k % 20 == 0:
                    most, peak = max(most, taken(Path(cache))), max(peak, memory()[0])
            spent = time.perf_counter() - started
            pipe.send(True)
            before, sent = sent, pipe.recv()
            rows.append({
                "images": images, "seconds": spent, "images_per_s": images / spent, "first_batch_s": first,
                "memory_grown_mib": (peak - begin) / 2**20, "fetched_mib": (sent - before) / 2**20,
            })  # fmt: skip
            print(", ".join(f"{name} {value:,.1f}" for name, value in rows[-1].items()))
        pipe.send(False)
        windows = 2 * args.window * BLOCK * 3 * args.size**2 / 2**20
        print(f"{machine()}: at most {most / 2**20:,.0f} MiB on disk; two windows are {windows:,.0f} MiB")
        results = vars(args) | {"disk_mib": most / 2**20, "two_windows_mib": windows, "epochs": rows}
        print(f"written: {save('remote', results)}")


if __name__ == "__main__":
    main()
