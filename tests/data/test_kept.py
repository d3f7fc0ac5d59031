"""Files that are fetched from an address and kept on disk, by several processes at once."""

import hashlib
import os
import threading

from diffusion.data.remote import PART, Address, evict, keep
from diffusion.support.lock import lock
from tests.served import served


def test_files_in_use_are_not_removed(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.npy").write_bytes(bytes(100))
        os.utime(tmp_path / f"{k}.npy", (k, k))
    with open(tmp_path / "0.npy", "rb") as used:
        assert lock(used.fileno(), shared=True)
        evict(tmp_path, 200, set())
        assert sorted(f.name for f in tmp_path.iterdir()) == ["0.npy", "3.npy"]
    (tmp_path / "x.npy.part").write_bytes(bytes(100))
    evict(tmp_path, 100, {"x.npy.part"})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["3.npy", "x.npy.part"]
    evict(tmp_path, 100, set())  # of a process that was killed
    assert len(list(tmp_path.iterdir())) == 1


def test_a_shard_is_fetched_by_one_of_several(tmp_path):
    """Eight threads, each with a file descriptor of its own, as processes have; a stale part is overwritten."""
    content = os.urandom(10**6)
    (tmp_path / "there" / "shards").mkdir(parents=True)
    (tmp_path / "there" / "shards" / "000004.npy").write_bytes(content)
    path = tmp_path / "one.npy"
    path.with_name(path.name + PART).write_bytes(bytes(2 * 10**6))
    with served(tmp_path / "there") as server:
        given = (Address(server.url), "shards/000004.npy", hashlib.sha256(content).hexdigest(), path)
        threads = [threading.Thread(target=keep, args=given) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.shards() == [4]
    assert path.read_bytes() == content and [f.name for f in tmp_path.glob("one*")] == ["one.npy"]
