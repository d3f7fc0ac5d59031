"""A prepared folder behind an address: the order by windows, the disk that it takes, and servers that fail."""

import contextlib
import errno
import json
import os
import pickle
import signal

import numpy as np
import pytest
import torch

from diffusion.data import Batches, DataNotFound, Prepared, remote
from diffusion.data.augment import PadCrop
from diffusion.data.order import ARRANGED, seeded
from diffusion.data.streamed import HEADER, Streamed
from tests import prepared
from tests.served import every, served

N, SHAPE, BLOCK = 240, (1, 8, 8), 10  # shards of 10 rows, of which every image is in use
BYTES = BLOCK * 64 + HEADER  # of a shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache" / "remote"


@pytest.fixture
def folder(tmp_path):
    """240 images in 24 shards, of which 180 are for training; pixel (0, 0) and the label are the image's number."""
    images = np.random.RandomState(0).randint(0, 256, (N, *SHAPE), np.uint8)
    images[:, 0, 0, 0] = np.arange(N)
    classes = [f"k{k}" for k in range(N)]
    options = {"classes": classes, "labels": np.arange(N), "block": BLOCK, "gaps": False, "empty": False}
    prepared.write(tmp_path / "photos", images, **options)
    return tmp_path / "photos"


@pytest.fixture
def server(folder):
    with served(folder) as server:
        yield server


def closed_form(folder, seed, epoch, window):
    """The training images in the order of an epoch, written out: window after window, each as in the shuffled order."""
    mine = np.flatnonzero(np.load(folder / "split.npy") == 0)
    shuffled = mine[torch.randperm(len(mine), generator=seeded(seed, epoch)).numpy()]
    shards = np.unique(mine // BLOCK)
    shards = shards[torch.randperm(len(shards), generator=seeded(seed, epoch, ARRANGED)).numpy()].tolist()
    windows = [shards[k : k + window] for k in range(0, len(shards), window)]
    return [int(i) for some in windows for i in shuffled if i // BLOCK in some]


def loaders(url, world, batch_size=8, window=3, **options):
    """The training loaders of some processes, each of which has the folder opened by itself."""
    for rank in range(world):
        data = Prepared(url, window=window, seed=5)
        images, y = data.store("train")
        assert isinstance(images, Streamed)
        yield Batches(images, y, batch_size, True, True, seed=5, rank=rank, world=world, **options)


def together(batches):
    """The numbers of the images that all processes see in a step, in the order's own sequence."""
    for x0, y in batches:
        assert torch.equal(((x0[:, 0, 0, 0] + 1) * 127.5).round().long(), y)  # the images are those of the labels
    return torch.stack([y for _, y in batches], 1).flatten().tolist()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("window", [1, 3, 24])
def test_order_is_the_closed_form_in_any_number_of_processes(folder, server, world, window):
    ranks = list(loaders(server.url, world, window=window))
    for epoch in (0, 1):
        for loader in ranks:
            loader.set_epoch(epoch)
        seen = [i for batches in zip(*ranks, strict=True) for i in together(batches)]
        assert seen == closed_form(folder, 5, epoch, window)[: len(seen)] and len(seen) == 180 // world // 8 * world * 8


@pytest.mark.parametrize(("before", "after", "batch_size"), [(2, 1, 8), (1, 2, 8), (1, 1, 8), (2, 2, 8), (2, 1, 5)])
def test_order_resumes_within_an_epoch_with_another_number_of_processes(folder, server, before, after, batch_size):
    wanted = closed_form(folder, 5, 0, 3)
    first, seen = list(loaders(server.url, before)), []
    for done, batches in enumerate(zip(*first, strict=True), 1):
        seen += together(batches)
        if done == 3:
            break
    second = list(loaders(server.url, after, batch_size))
    for loader in second:
        loader.load_state_dict(first[0].state_dict())
    for batches in zip(*second, strict=True):
        seen += together(batches)
    assert seen == wanted[: len(seen)] and len(seen) > 180 - after * batch_size


def test_windows_of_all_shards_give_the_batches_of_the_local_folder(folder, server):
    """To the bit, with flips, augmentations and balanced classes."""
    options = {"flip": True, "augment": [PadCrop(2)], "seed": 3, "batch_size": 16, "balance": 0.5}
    here, there = Prepared(str(folder), **options), Prepared(server.url, window=24, **options)
    assert (there.name, there.shape, there.class_names) == (here.name, here.shape, here.class_names)
    for one, other in (
        (here.train_dataloader(), there.train_dataloader()),
        (here.val_dataloader(), there.val_dataloader()),
    ):
        for (x, a), (z, b) in zip(one, other, strict=True):
            assert torch.equal(x, z) and torch.equal(a, b)
    assert torch.equal(here.arrays("test")[0], there.arrays("test")[0])


def test_balanced_draws_stay_within_their_windows(folder, server):
    """Images drawn several times are so in one window; which images are drawn does not depend on windows."""
    weights = torch.arange(1, 181)
    (loader,) = loaders(server.url, 1, weights=weights)
    loader.arrange, arranged = None, loader.arrange
    plain = loader.draw(0)[0]
    loader.arrange = arranged
    order = loader.draw(0)[0]
    assert torch.equal(order.sort()[0], plain.sort()[0])
    of = torch.from_numpy(loader.store.of)[order].tolist()
    changes = [s for k, s in enumerate(of) if s not in of[:k]]
    for k in range(0, len(changes), 3):
        places = [i for i, s in enumerate(of) if s in changes[k : k + 3]]
        assert places == list(range(places[0], places[-1] + 1))


def on_disk(cache):
    """Bytes of the shards in the cache; threads rename and remove files meanwhile."""
    total = 0
    for file in cache.glob("*/shards/*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def test_about_two_windows_are_on_disk(server, cache):
    (loader,) = loaders(server.url, 1)
    most = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for _ in loader:
            most.append(on_disk(cache))
    assert max(most) <= 6 * BYTES and len(set(server.shards())) == 24
    assert len(server.shards()) <= 4 * 24  # each shard once per epoch, and some of the first window of the fourth
    assert len(loader.store._open) <= 6


def test_small_files_are_fetched_once_and_shards_are_kept_if_the_disk_allows(server, cache):
    (loader,) = loaders(server.url, 1)
    data = Prepared(server.url, disk=1, window=3, batch_size=9)
    assert server.asked.count("/rows.npy") == server.asked.count("/labels.npy") == 1
    assert server.asked.count("/dataset.json") == 2 and "/targets.npy" not in server.asked
    for _ in range(2):
        for _ in data.train_dataloader():
            pass
        assert sorted(server.shards()) == list(range(24))
    assert on_disk(cache) == 24 * BYTES


def test_validation_reads_shard_by_shard(folder, server, cache):
    data = Prepared(server.url, batch_size=4, window=3)
    seen, most = [], 0
    for _, y in data.val_dataloader():
        seen += y.tolist()
        most = max(most, on_disk(cache))
    assert seen == np.flatnonzero(np.load(folder / "split.npy") == 1).tolist()
    of = list(dict.fromkeys(i // BLOCK for i in seen))
    asked = list(dict.fromkeys(server.shards()))  # in the order of their first requests
    assert sorted(asked) == of and len(server.shards()) <= len(of) + 3  # and of the next pass the first window
    assert all(abs(place - of.index(shard)) < 8 for place, shard in enumerate(asked)) and most <= 6 * BYTES


def test_validation_within_an_epoch_leaves_its_order_alone(folder, server, cache):
    data = Prepared(server.url, batch_size=8, window=3, seed=5)
    seen = []
    for k, (_, y) in enumerate(data.train_dataloader()):
        seen += y.tolist()
        if k == 9:
            assert sum(len(y) for _, y in data.val_dataloader()) == 60
            assert on_disk(cache) <= 10 * BYTES  # two windows, and two of the test split
    assert seen == closed_form(folder, 5, 0, 3)[: len(seen)]


def test_images_are_read_in_any_order_and_number(folder, server, cache):
    here, there = Prepared(str(folder)).store("train")[0], Prepared(server.url, window=2).store("train")[0]
    for index in (torch.randperm(180), torch.tensor([179, 0, 179]), torch.zeros(0, dtype=torch.long)):
        assert torch.equal(here.take(index), there.take(index))
        assert on_disk(cache) <= 4 * BYTES and not there._open


def test_copies_and_forks_read_by_themselves(folder, server):
    data = Prepared(server.url, window=2)
    store = data.store("train")[0]
    index = torch.arange(0, 180, 7)
    wanted = store.take(index)
    assert torch.equal(pickle.loads(pickle.dumps(store)).take(index), wanted)
    store.follow(torch.arange(180), lambda: torch.arange(180))
    child = os.fork()
    if not child:
        signal.alarm(600)
        os._exit(0 if torch.equal(store.take(index), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(store.take(index), wanted)


def test_a_server_that_fails_every_third_request_is_tried_again(folder, server):
    server.break_off = every(3)
    (loader,) = loaders(server.url, 1)
    seen = [i for batch in loader for i in together([batch])]
    assert seen == closed_form(folder, 5, 0, 3)[: len(seen)] and len(seen) == 176 and server.broken > 5


def test_an_altered_shard_is_fetched_twice_and_refused(folder, server, cache):
    file = folder / "shards" / "000007.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (loader,) = loaders(server.url, 1)
    with pytest.raises(
        ValueError, match=r"shards/000007.npy: sha256 .*, wanted .*, twice: .* copy the prepared folder"
    ):
        list(loader)
    assert server.shards().count(7) in (2, 4)  # ahead, and when it was needed
    assert not list(cache.glob("*/shards/000007*"))
    file.write_bytes(whole)
    assert len(list(loader)) == 22  # as soon as it is repaired


def test_a_shard_damaged_on_this_disk_is_fetched_again(server, cache):
    (loader,) = loaders(server.url, 1, window=24)
    first = [y.tolist() for _, y in loader]
    next(cache.glob("*/shards/000003.npy")).write_bytes(b"x")
    assert [y.tolist() for _, y in loader] == first and server.shards().count(3) == 2


def test_missing_files_and_addresses_are_refused(folder, server, tmp_path, monkeypatch):
    with pytest.raises(DataNotFound, match="/nowhere/dataset.json: no such file; check the address"):
        Prepared(server.url + "/nowhere")
    (folder / "shards" / "000002.npy").unlink()
    with pytest.raises(DataNotFound, match="000002.npy: no such file; .* copy the whole prepared folder"):
        list(next(loaders(server.url, 1)))
    server.break_off = lambda number, path: True
    with pytest.raises(ConnectionError, match="dataset.json: cannot be fetched .* tries: 3.*; check the address"):
        Prepared(server.url)
    with pytest.raises(ConnectionError, match="Protocol not known: nothing"):
        Prepared("nothing://a/b")
    monkeypatch.setattr(remote, "url_to_fs", lambda *_: (_ for _ in ()).throw(ImportError("Install s3fs")))
    with pytest.raises(ImportError, match=r"s3://b/photos: s3:// needs s3fs: pip install s3fs"):
        Prepared("s3://b/photos")


def test_damaged_facts_are_refused(folder, server):
    file = folder / "dataset.json"
    facts = json.loads(file.read_text())
    for change in ({"file": "../../evil.npy"}, {"file": "shards/.."}, {"sha256": "x"}):
        file.write_text(json.dumps(facts | {"shards": [facts["shards"][0] | change]}))
        with pytest.raises(ValueError, match="127.0.0.1.*/dataset.json: damaged"):
            Prepared(server.url)
    file.write_text("<html>")
    with pytest.raises(ValueError, match="127.0.0.1.*/dataset.json: damaged .*; prepare the folder again"):
        Prepared(server.url)


def test_no_space_is_one_line(server, monkeypatch):
    (loader,) = loaders(server.url, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(remote.Address, "fetch", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"no space left for shards/.*; choose a smaller --data.window .*DIFFUSION_CACHE"):
        next(iter(loader))


@pytest.mark.parametrize(("options", "words"), [
    ({"window": 0}, "wanted window in 1..256"), ({"disk": -1}, "disk >= 0, got window 32, disk -1"),
    ({"disk": 1e-6}, "two windows of 32 shards take .* GiB, and disk allows 1e-06; choose a smaller window"),
])  # fmt: skip
def test_windows_that_do_not_fit_are_refused(server, options, words):
    with pytest.raises(ValueError, match=words):
        Prepared(server.url, **options)


def test_another_data_set_at_the_same_address_is_another_folder(folder, server, tmp_path):
    first = Prepared(server.url).path
    images = np.zeros((N, *SHAPE), np.uint8)
    for file in folder.rglob("*.npy"):
        file.unlink()
    (folder / "shards").rmdir()
    prepared.write(folder, images)
    second = Prepared(server.url)
    assert second.path != first and not second.arrays("test")[0].any()


def test_a_file_of_the_local_disk_has_an_address_too(folder):
    here, there = Prepared(str(folder)), Prepared(folder.as_uri(), window=2)
    assert torch.equal(here.arrays("train")[0], there.arrays("train")[0])
