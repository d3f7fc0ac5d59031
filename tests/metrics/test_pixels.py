"""Metrics of images that stay where they are: the same figures as of images in memory, a few read at a time."""

import numpy as np
import pytest
import torch

from diffusion.data import Prepared, remote
from diffusion.data.store import InMemory
from diffusion.metrics import distances, pixels
from diffusion.metrics.base import Features, metric
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.features import FeatureNet
from diffusion.metrics.pixels import Pixels
from diffusion.support.scaling import Scaling
from tests import prepared
from tests.served import served

KEYS = "frechet,kid,pr,dc,is,consistency,diversity,memory,swd,spectrum".split(",")
N = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """700 images 3x10x12 in two classes, in a prepared folder."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    images = np.random.RandomState(0).randint(0, 256, (N, 3, 10, 12), np.uint8)
    prepared.write(folder, images, classes=("a", "b"), labels=np.arange(N) % 2, block=50, empty=False)
    return folder


@pytest.fixture
def few(monkeypatch):
    """Blocks of few images, so that there are many."""
    monkeypatch.setattr(distances, "NUMBERS", 20_000)  # 55 images


def net():
    torch.manual_seed(0)
    return FeatureNet(3, 2, (8, 8), 12)


def figures(train, test, labelled=True, **options):
    evaluator = Evaluator(Extractor.of(net(), "Net"), "photos", train, test, labelled=labelled, **options)
    y = evaluator.labels(90)
    raw = torch.from_numpy(np.random.RandomState(1).randint(0, 256, (90, 3, 10, 12), np.uint8))
    samples = evaluator.describe(raw, y)
    usable = [m for m in map(metric, KEYS) if not m.missing(samples, evaluator.reference)]
    return evaluator, evaluator.figures(samples, usable)


@pytest.mark.parametrize("labelled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_figures_of_images_in_files_are_those_of_images_in_memory(folder, few, labelled):
    data = Prepared(str(folder))
    memory, wanted = figures(data.arrays("train"), data.arrays("test"), labelled)
    assert len(wanted) > 15
    held = [(InMemory(x), y) for x, y in map(data.arrays, ("train", "test"))]
    for stores in (held, [data.store("train"), data.store("test")]):
        evaluator, found = figures(*stores, labelled)
        assert found == wanted  # to the bit
        for one, other in zip(
            (evaluator.reference.train, evaluator.reference.test),
            (memory.reference.train, memory.reference.test),
            strict=True,
        ):
            assert isinstance(one.images, Pixels) and torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.features, other.features) and torch.equal(one.logits, other.logits)
    assert figures(*held, labelled)[0].reference.hash == memory.reference.hash


@pytest.mark.slow
def test_figures_behind_an_address_are_those_of_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    here = Prepared(str(folder))
    one, wanted = figures(here.store("train"), here.store("test"))
    with served(folder) as server:
        there = Prepared(server.url, window=2)
        other, found = figures(there.store("train"), there.store("test"))
        assert other.provenance == one.provenance
        for f, w in zip(found, wanted, strict=True):
            assert f[:1] == w[:1] and f[1:7] == pytest.approx(w[1:7], rel=1e-5, abs=1e-6)
        shards = len(here.facts["shards"])
        again = len(server.shards())
        assert again < 12 * shards  # in the order of the shards, not of the images


def test_few_images_are_in_memory_at_a_time(folder, few):
    """All metrics; those that compare the first n training images read these only."""

    class Counted(InMemory):
        most = 0

        def take(self, index, pin=False):
            Counted.most = max(Counted.most, len(index))
            return super().take(index, pin)

    data = Prepared(str(folder))
    figures(*((Counted(x), y) for x, y in map(data.arrays, ("train", "test"))))
    assert Counted.most <= distances.ROWS < 525


def test_features_are_kept_by_the_hashes_of_the_shards(folder, tmp_path, monkeypatch):
    data = Prepared(str(folder))
    first, wanted = figures(data.store("train"), data.store("test"), cache=tmp_path)
    monkeypatch.setattr(FeatureNet, "forward", None)
    read = []
    monkeypatch.setattr(Pixels, "raw", lambda self, size=0: read.append(1) or iter(()))
    again = Evaluator(Extractor.of(net(), "Net"), "photos", data.store("train"), data.store("test"), tmp_path)
    assert again.provenance == first.provenance and not read
    fewer = Prepared(str(folder), limit=300)
    monkeypatch.undo()
    other = Evaluator(Extractor.of(net(), "Net"), "photos", fewer.store("train"), fewer.store("test"))
    assert other.provenance["train"]["images"] != first.provenance["train"]["images"]
    assert other.provenance["test"] == first.provenance["test"]


def test_pixels_are_parts_of_their_source(few, monkeypatch):
    raw = torch.from_numpy(np.random.RandomState(0).randint(0, 2**16, (50, 2, 3, 4), np.uint16))
    scaling = Scaling("uint16", (3e4,), (2e4,))
    index = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    store = InMemory(raw)
    wanted = scaling.encode(raw)[index]
    for sequential in (False, True):
        store.sequential = sequential
        x = Pixels(store, index, scaling)
        assert len(x) == 50 and x.shape == (50, 2, 3, 4)
        assert torch.equal(x.tensor(), wanted)
        assert [len(part) for part in x.split(20)] == [20, 20, 10]
        mask = torch.arange(50) % 3 == 0
        assert torch.equal(x[mask][2:9].tensor(), wanted[mask][2:9])
        assert x[:0].tensor().shape == (0, 2, 3, 4)
        ordered, order = x.in_order()
        assert torch.equal(ordered.tensor(), wanted[order])
        assert torch.equal(ordered.index, torch.arange(50) if sequential else index)
    assert torch.equal(Features(x, wanted, wanted, None).pixels, wanted)


def test_large_parts_of_sequential_sources_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(pixels, "GATHERED", 10)
    store = InMemory(torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2))
    store.sequential = True
    index = torch.arange(9, -1, -1)
    assert torch.equal(torch.cat(list(Pixels(store, index, Scaling()).raw(3))), store.images[index])


def test_nearest_and_distances_do_not_depend_on_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, 8, 8, generator=generator) for n in (130, 333))
    y[50] = x[7]
    y[200:] = y[:133]  # the first of equal rows is the nearest
    whole = distances.nearest(x, y, size=32), torch.cat([d for _, d in distances.rows(x, y)])
    monkeypatch.setattr(distances, "NUMBERS", 192 * 20)
    blocks = distances.nearest(x, y, size=32), torch.cat([d for _, d in distances.rows(x, y)])
    assert torch.equal(whole[0][0], blocks[0][0]) and torch.equal(whole[0][1], blocks[0][1])
    assert torch.equal(whole[1], blocks[1]) and int(whole[0][1].max()) < 200 and int(whole[0][1][7]) == 50
