"""`Loader`, with its worker processes, in real runs: resumed to the bit, and with another number of processes."""

from pathlib import Path

import pytest
import torch

from benchmarks.processes import Group
from diffusion.data import Batches, Digits
from tests.processes import work

pytestmark = pytest.mark.slow
LIMIT = 600  # seconds after which a group counts as hung
SIZE, N = 24, 330


def run(world, folder, checkpoint, workers):
    """What each of the processes saw."""
    with Group(world, work.train, folder, str(folder), checkpoint and str(checkpoint), workers) as group:
        assert group.codes(LIMIT) == [0] * world, group.said()
    return [torch.load(folder / f"seen{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def whole(request, tmp_path_factory):
    """The uninterrupted run without workers: the number of processes, the folder, and what each saw."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, folder, run(request.param, folder, None, 0)


def step(folder: Path, number: int) -> Path:
    return folder / "x" / "version_0" / "checkpoints" / f"step{number:08d}.ckpt"


def epochs(parts):
    """What all processes saw of each of two epochs, in the order's own sequence, step by step."""
    found = {0: [], 1: []}
    for batches in zip(*(part["batches"] for part in parts), strict=True):
        found[batches[0][0]].append(torch.stack([i for _, i in batches], 1).flatten().tolist())
    return found


def flat(steps):
    return [i for images in steps for i in images]


def order(epoch):
    images, y = Digits(limit=N).arrays("train")
    return Batches(images, y, shuffle=True, drop_last=True).plan(epoch)[0].tolist()


@pytest.mark.parametrize("at, workers", [(3, 0), (3, 2), (8, 2)])
def test_a_run_with_a_loader_resumes_to_the_bit(at, workers, whole, tmp_path):
    """In the middle of the first epoch; with two processes also in that of the second."""
    world, folder, wanted = whole
    parts = run(world, tmp_path, step(folder, at), workers)
    for part, all_of_it in zip(parts, wanted, strict=True):
        assert part["step"] == all_of_it["step"] == 2 * (N // world // SIZE)
        left = all_of_it["batches"][at:]
        assert [(e, i.tolist()) for e, i in part["batches"]] == [(e, i.tolist()) for e, i in left]
        assert all(torch.equal(a, b) for a, b in zip(part["times"], all_of_it["times"][at:], strict=True))
        assert all(torch.equal(v, all_of_it["end"][k]) for k, v in part["end"].items())
        assert part["validated"] == [v for v in all_of_it["validated"] if v[0] > at]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_seen_once_on_the_way_through_other_numbers_of_processes(workers, whole, tmp_path):
    """2 -> 1 -> 2 processes and 1 -> 2 -> 1, each change in the middle of the first epoch."""
    world, folder, first = whole
    other = 3 - world
    second = run(other, tmp_path / "second", step(folder, 2), workers)
    third = run(world, tmp_path / "third", step(tmp_path / "second", 4), workers)
    seen = flat(epochs(first)[0][:2] + epochs(second)[0][:2] + epochs(third)[0])
    done = 2 * SIZE * (world + other)
    left = (N - done) // world // SIZE * world * SIZE
    assert seen == order(0)[: done + left] and len(set(seen)) == done + left
    assert flat(epochs(third)[1]) == order(1)[: N // world // SIZE * world * SIZE]
    ends = 4 + left // (world * SIZE)
    assert [s for s, _ in third[0]["validated"]] == [ends, ends + N // world // SIZE]
    start, read = third[0]["start"], torch.load(step(tmp_path / "second", 4), weights_only=True)
    assert all(torch.equal(v, read["state_dict"][k]) for k, v in start["weights"].items())
