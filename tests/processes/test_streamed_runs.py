"""Runs on a prepared folder behind an address: resumed to the bit, and with another number of processes."""

from pathlib import Path

import pytest
import torch

from benchmarks.processes import Group
from diffusion.data import Digits, Prepared
from tests import prepared
from tests.processes import work
from tests.served import every, served

pytestmark = pytest.mark.slow
LIMIT = 600  # seconds after which a group counts as hung
SIZE, N = 24, 400


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A server of 400 digits in 10 shards; every request in seven breaks off."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    images, y = Digits(limit=N).arrays("train")
    options = {"classes": list("0123456789"), "labels": y.numpy(), "block": 40, "gaps": False, "empty": False}
    prepared.write(folder, images.numpy(), test=0.15, **options)
    with served(folder) as server:
        server.break_off = every(7)
        yield server


def run(world, folder, checkpoint, server):
    """What each of the processes saw; they share a cache, as those of one machine."""
    given = (str(folder), checkpoint and str(checkpoint), None, 2, server.url)
    with Group(world, work.train, folder, *given, environment={"DIFFUSION_CACHE": str(folder / "cache")}) as group:
        assert group.codes(LIMIT) == [0] * world, group.said()
    return [torch.load(folder / f"seen{rank}.pt") for rank in range(world)]


def step(folder: Path, number: int) -> Path:
    return folder / "x" / "version_0" / "checkpoints" / f"step{number:08d}.ckpt"


def steps(parts, epoch):
    """What all processes saw of an epoch in each step, in the order's own sequence."""
    both = zip(*(part["batches"] for part in parts), strict=True)
    return [torch.stack([i for _, i in batches], 1).flatten().tolist() for batches in both if batches[0][0] == epoch]


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_on_an_address_resumes_to_the_bit_and_with_another_number_of_processes(
    world, digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "own"))
    order = [
        Prepared(digits.url, batch_size=SIZE, limit=330, window=2).train_dataloader().plan(epoch)[0] for epoch in (0, 1)
    ]
    n = len(order[0])
    whole = run(world, tmp_path / "whole", None, digits)
    for epoch in (0, 1):
        seen = sum(steps(whole, epoch), [])
        assert seen == order[epoch][: len(seen)].tolist() and len(seen) == n // world // SIZE * world * SIZE
    assert sum(f.stat().st_size for f in (tmp_path / "whole" / "cache").rglob("shards/*")) <= 8 * (40 * 64 + 128)

    again = run(world, tmp_path / "again", step(tmp_path / "whole", 3), digits)
    for part, wanted in zip(again, whole, strict=True):
        assert [i.tolist() for _, i in part["batches"]] == [i.tolist() for _, i in wanted["batches"][3:]]
        assert all(torch.equal(v, wanted["end"][k]) for k, v in part["end"].items())
        assert part["validated"] == [v for v in wanted["validated"] if v[0] > 3]

    other = run(3 - world, tmp_path / "other", step(tmp_path / "whole", 3), digits)
    seen = sum(steps(whole, 0)[:3] + steps(other, 0), [])
    assert seen == order[0][: len(seen)].tolist() and len(seen) > n - (3 - world) * SIZE
    following = sum(steps(other, 1), [])
    assert following == order[1][: len(following)].tolist()
