"""Test images behind an address, set aside on disk: later validations need no network."""

import os
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch

from diffusion.data import Prepared, remote
from diffusion.data.aside import SetAside
from diffusion.data.streamed import HEADER, room_for
from tests import prepared
from tests.served import served

N, SHAPE, BLOCK = 240, (1, 8, 8), 10
BYTES = BLOCK * 64 + HEADER  # of a shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache" / "remote"


@pytest.fixture
def folder(tmp_path):
    """240 images in 24 shards, of which 60 in nearly all shards are for testing."""
    images = np.random.RandomState(0).randint(0, 256, (N, *SHAPE), np.uint8)
    prepared.write(tmp_path / "photos", images, block=BLOCK, gaps=False, empty=False)
    return tmp_path / "photos"


@pytest.fixture
def server(folder):
    with served(folder) as server:
        yield server


def validated(data):
    """The test images as a validation receives them."""
    return torch.cat([x for x, _ in data.val_dataloader()])


def test_a_validation_fetches_the_test_images_once(folder, server, cache):
    data = Prepared(server.url, window=3, batch_size=7)
    wanted = validated(Prepared(str(folder), batch_size=7))
    assert isinstance(data.store("test")[0], SetAside)
    assert torch.equal(validated(data), wanted)
    split = np.load(folder / "split.npy")
    shards = sorted({i // BLOCK for i in np.flatnonzero(split)})
    assert sorted(server.shards()) == shards and len(shards) > 20
    copies = sorted(cache.glob("*/test/*"))
    assert [int(file.stem) for file in copies] == shards
    assert sum(file.stat().st_size for file in copies) == 60 * 64 + len(shards) * HEADER
    assert sum(file.stat().st_size for file in cache.glob("*/shards/*")) <= 6 * BYTES
    shutil.rmtree(folder / "shards")
    for again in (data, Prepared(server.url, window=3, batch_size=7), pickle.loads(pickle.dumps(data))):
        assert torch.equal(validated(again), wanted)
    store, index = data.store("test")[0], torch.tensor([59, 0, 31, 0])
    assert torch.equal(data.scaling.encode(store.take(index)), wanted[index])
    assert len(server.shards()) == len(shards)


def test_a_training_epoch_sets_the_test_images_aside(folder, server):
    """Without a validation before it; the shards that hold test images alone come with the first validation."""
    data = Prepared(server.url, window=3, batch_size=60)
    for _ in data.train_dataloader():
        pass
    wanted = validated(Prepared(str(folder)))
    shutil.rmtree(folder / "shards")  # which the next epoch's first window may still be fetched from
    assert torch.equal(validated(data), wanted)


def test_several_readers_set_aside_at_once(folder, server, cache):
    wanted, found = validated(Prepared(str(folder))), []
    threads = [
        threading.Thread(target=lambda: found.append(validated(Prepared(server.url, window=3)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(x, wanted) for x in found)
    assert not list(cache.glob("*/test/.*"))


def test_damaged_copies_are_made_again(folder, server, cache):
    data = Prepared(server.url, window=3)
    wanted = validated(data)
    for k, file in enumerate(sorted(cache.glob("*/test/*"))[:3]):
        file.write_bytes(b"" if k else file.read_bytes()[:-1])
    os.remove(sorted(cache.glob("*/test/*"))[5])
    assert torch.equal(validated(Prepared(server.url, window=3)), wanted)


def test_a_folder_without_test_images_in_some_shards(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (N, *SHAPE), np.uint8)
    prepared.write(tmp_path / "x", images, test=1 / N, block=BLOCK)
    with served(tmp_path / "x") as server:
        data = Prepared(server.url, window=3)
        assert torch.equal(validated(data), validated(Prepared(str(tmp_path / "x"))))
        assert len(server.shards()) == 1


def test_test_images_that_take_too_much_are_not_set_aside(folder, server, cache):
    data = Prepared(server.url, window=2)
    with pytest.warns(UserWarning, match=r"http.*: the test images take 3.58e-06 GiB, and .*; --data.disk 0.01 keeps"):
        data.store("test")
    for _ in range(2):
        validated(data)
    assert len(server.shards()) > 30 and not list(cache.glob("*/test"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Prepared(server.url, window=3).store("test")
        Prepared(server.url, window=24).store("test")


@pytest.mark.parametrize(("window", "disk", "wanted"), [
    (2, 0, (4 * 1128, True)), (12, 0, (24 * 1128, False)), (1, 0, (2 * 1128, False)),
    (2, 24 * 1128, (24 * 1128, False)), (2, 4 * 1128 + 3000, (4 * 1128, True)),
    (2, 5 * 1128 + 3000, (5 * 1128, True)), (2, 4 * 1128 + 2999, (4 * 1128 + 2999, False)),
])  # fmt: skip
def test_room_of_shards_and_copies(window, disk, wanted):
    """24 shards of 10 images of 100 bytes, and 30 test images; the last too many, or all shards, leave no copies."""
    facts = {"shape": [1, 10, 10], "dtype": "uint8", "images": {"train": 210, "test": 30}}
    facts["shards"] = [{"images": 10}] * 24
    room, copies, why = room_for(facts, window, disk / 2**30)
    assert (room, copies) == wanted and bool(why) == (not copies and room < 24 * 1128)
