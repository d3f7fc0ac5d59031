"""Stores: the images of files are those of memory, whatever is asked, in which process, and how much there is."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion.data.batches import Batches
from diffusion.data.store import FILES, InMemory, Shards, everything
from diffusion.support.scaling import Scaling
from tests import prepared

N, SHAPE = 60, (3, 4, 6)
SCALINGS = {"uint8": Scaling(), "uint16": Scaling("uint16", (30000,), (30000,)),
            "float32": Scaling("float32", (0.1, 0.2, 0.3), (1, 2, 3), False)}  # fmt: skip


def pictures(dtype, n=N):
    random = np.random.RandomState(0)
    if dtype == "float32":
        return random.randn(n, *SHAPE).astype(np.float32)
    return random.randint(0, 60000 if dtype == "uint16" else 256, (n, *SHAPE)).astype(dtype)


@pytest.fixture(params=SCALINGS)
def stored(request, tmp_path):
    """Images, and a store of the same in files, of every second row of its shards."""
    images = pictures(request.param)
    prepared.write(tmp_path / "x", images)
    return torch.from_numpy(images), Shards(tmp_path / "x", np.load(tmp_path / "x" / "rows.npy")), request.param


def test_shards_hold_the_images_of_memory(stored):
    images, shards, _ = stored
    memory = InMemory(images)
    assert len(shards) == len(memory) == N and shards.shape == memory.shape and shards.dtype == memory.dtype
    assert shards.nbytes == memory.nbytes == images.nbytes
    for index in ([5], [0, 1, 2, 3], [59, 0, 59, 7, 8], range(N), []):
        index = torch.tensor(list(index), dtype=torch.int64)
        shards.ahead(index)
        assert torch.equal(shards.take(index).view(torch.uint8), memory.take(index).view(torch.uint8))
    assert torch.equal(everything(shards).view(torch.uint8), images.view(torch.uint8))


def test_neighbours_in_a_shard_are_read_at_once(tmp_path):
    images = pictures("uint8", 20)
    prepared.write(tmp_path / "x", images, gaps=False)  # shards of 7, 0 and 10 images
    shards = Shards(tmp_path / "x", np.arange(20))
    assert shards._runs(torch.arange(20)) == [(0, 0, 0, 7), (2, 0, 7, 10), (3, 0, 17, 3)]
    assert shards._runs(torch.tensor([4, 5, 3, 6, 7])) == [(0, 4, 0, 2), (0, 3, 2, 1), (0, 6, 3, 1), (2, 0, 4, 1)]


def test_batches_of_files_are_those_of_memory_to_the_bit(stored):
    images, shards, dtype = stored
    y = torch.arange(N)
    options = {"batch_size": 7, "shuffle": True, "flip": True, "seed": 3, "scaling": SCALINGS[dtype]}
    for world in (1, 2):
        for rank in range(world):
            one, other = (Batches(x, y, rank=rank, world=world, **options) for x in (images, shards))
            for epoch in (0, 1):
                one.set_epoch(epoch)
                other.set_epoch(epoch)
                for (x, a), (z, b) in zip(one, other, strict=True):
                    assert torch.equal(x, z) and torch.equal(a, b) and x.dtype == torch.float32


def test_batches_refuse_images_of_another_type_than_the_scaling(stored):
    images, shards, dtype = stored
    other = SCALINGS["uint8" if dtype != "uint8" else "uint16"]
    for x in (images, shards):
        with pytest.raises(ValueError, match=f"images must be {other.dtype}, got torch.{dtype}"):
            Batches(x, torch.arange(N), scaling=other)
    if dtype == "float32":
        with pytest.raises(ValueError, match="numbers for 2 channels, and the images have 3"):
            Batches(images, torch.arange(N), scaling=Scaling("float32", (0, 0), (1, 1), False))


def test_shards_are_read_in_other_processes(stored):
    """After a fork, and as a copy: a process's files are its own."""
    images, shards, _ = stored
    index = torch.arange(N)
    wanted = shards.take(index).view(torch.uint8)
    copy = pickle.loads(pickle.dumps(shards))
    assert torch.equal(copy.take(index).view(torch.uint8), wanted)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(shards.take(index).view(torch.uint8), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(shards.take(index).view(torch.uint8), wanted)


def test_only_some_files_stay_open(tmp_path):
    images = pictures("uint8", 3 * FILES)
    prepared.write(tmp_path / "x", images, block=1, gaps=False, empty=False)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    shards = Shards(tmp_path / "x", np.arange(len(images)))
    assert torch.equal(everything(shards), torch.from_numpy(images))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + FILES
        del shards
        assert len(os.listdir("/proc/self/fd")) == before


def test_damaged_shards_are_refused(tmp_path):
    images = pictures("uint16", 20)
    prepared.write(tmp_path / "x", images)
    file = tmp_path / "x" / "shards" / "000000.npy"
    whole = file.read_bytes()
    for content, words in (
        (
            whole[:-1],
            r"wanted uint16 \(7, 3, 4, 6\), got uint16 \(7, 3, 4, 6\) in 1,135 bytes; prepare the folder again",
        ),
        (b"hello", "000000.npy: not a .npy file"),
        (None, "000000.npy"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=words):
            Shards(tmp_path / "x", np.arange(20)).take(torch.tensor([3]))
    with pytest.raises(ValueError, match=r"rows 0 .. 99 of 39 images"):
        Shards(tmp_path / "x", np.arange(100))


READ = """
import numpy as np, resource, sys, torch
from diffusion.data.batches import Batches
from diffusion.data.store import Shards
def rss():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
shards = Shards(sys.argv[1], np.load(sys.argv[1] + "/rows.npy"))
loader = Batches(shards, torch.arange(len(shards)), 64, shuffle=True, drop_last=True)
used = total = 0
for k, (x, y) in enumerate(loader):
    total += len(x)
    if k == 20:
        begin = rss()
        limit = 2**20 * (int(open("/proc/self/statm").read().split()[0]) * 4096 // 2**20 + 64)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # 64 MiB more than now, of 256 MiB of images
print(total, rss() - begin)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_memory_is_flat_when_the_images_are_larger_than_the_limit(tmp_path):
    folder = tmp_path / "x"
    images = np.random.RandomState(0).randint(0, 256, (2**14, 4, 64, 64), dtype=np.uint8)  # 256 MiB
    prepared.write(folder, images, block=1024, gaps=False)
    ended = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    total, grown = map(int, ended.stdout.split())
    assert total == 2**14 and grown < 16, grown  # MiB; seen: 0
