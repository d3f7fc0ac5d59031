"""Downloads from a local server, and the errors and files after a failure."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
from torchvision import datasets

from diffusion.data import CIFAR10, MNIST, DataNotFound, FashionMNIST


@pytest.fixture
def served(tmp_path):
    """A folder, and the address at which its files are served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tiny_mnist(served, monkeypatch):
    folder, address = served
    resources, md5 = [], {}
    for part, n in (("train", 6), ("t10k", 4)):
        for name, shape in ((f"{part}-images-idx3-ubyte", (n, 28, 28)), (f"{part}-labels-idx1-ubyte", (n,))):
            array = np.random.RandomState(n).randint(10, size=shape, dtype=np.uint8)
            data = bytes([0, 0, 8, len(shape)]) + b"".join(i.to_bytes(4, "big") for i in shape) + array.tobytes()
            packed = gzip.compress(data)
            (folder / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
            md5[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "md5", md5)
    return folder


def tree(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_mnist_is_downloaded_and_complete(tiny_mnist, tmp_path):
    root = tmp_path / "new" / "root"
    data = MNIST(root=str(root))
    data.prepare_data()
    assert tree(root) == sorted(f"MNIST/raw/{name}" for name in MNIST.md5)
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    data.setup("fit")
    assert len(data.arrays("train")[0]) == 6 and len(data.arrays("test")[0]) == 4
    for file in tiny_mnist.iterdir():
        file.unlink()
    MNIST(root=str(root)).prepare_data()  # the second call requests nothing


@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_download_leaves_no_files(tiny_mnist, tmp_path, existing):
    (tiny_mnist / "t10k-labels-idx1-ubyte.gz").unlink()  # the last of four
    root = tmp_path / "root"
    if existing:
        root.mkdir()
    with pytest.raises(DataNotFound):
        MNIST(root=str(root)).prepare_data()
    assert root.exists() == existing and not tree(root)
    assert not list(tmp_path.rglob(".download-*"))


def test_a_download_with_a_wrong_checksum_is_refused(tiny_mnist, tmp_path):
    (tiny_mnist / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataNotFound, match="corrupted|downloading"):
        MNIST(root=str(tmp_path / "root")).prepare_data()
    assert not (tmp_path / "root").exists()


def member(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def tiny_cifar(served, monkeypatch):
    """A CIFAR-10 of 5 x 4 + 4 images in torchvision's layout."""
    folder, address = served
    random, packed, lists = np.random.RandomState(0), io.BytesIO(), {"train_list": [], "test_list": []}
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
            content = {"data": random.randint(256, size=(4, 3072), dtype=np.uint8), "labels": [0, 9, 3, 5]}
            data = pickle.dumps({"label_names": list("abcdefghij")} if name == "batches.meta" else content)
            member(archive, f"cifar-10-batches-py/{name}", data)
            md5 = hashlib.md5(data).hexdigest()
            if name == "batches.meta":
                monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
            else:
                lists["test_list" if name == "test_batch" else "train_list"].append([name, md5])
    for name, value in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    (folder / "cifar-10-python.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar-10-python.tar.gz")
    return folder


@pytest.mark.parametrize("by_hand", [False, True])
def test_cifar_is_downloaded_or_unpacked(tiny_cifar, tmp_path, by_hand):
    root = tmp_path / "root"
    if by_hand:  # the archive exists and there is no network
        root.mkdir()
        (tiny_cifar / "cifar-10-python.tar.gz").rename(root / "cifar-10-python.tar.gz")
    data = CIFAR10(root=str(root), batch_size=8)
    data.prepare_data()
    left = {"cifar-10-batches-py"} | ({"cifar-10-python.tar.gz"} if by_hand else set())
    assert {path.name for path in root.iterdir()} == left
    images, y = data.arrays("train")
    assert images.shape == (20, 3, 32, 32) and y.tolist() == [0, 9, 3, 5] * 5
    first = np.random.RandomState(0).randint(256, size=(4, 3072), dtype=np.uint8)
    np.testing.assert_array_equal(images[:4].numpy().reshape(4, -1), first)
    damaged = root / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data_batch_3.*truncated"):
        CIFAR10(root=str(root)).arrays("train")


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_download_without_network_is_a_one_line_error(kind, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9/"
    for source in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", [nowhere])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{nowhere}cifar-10-python.tar.gz")
    with pytest.raises(DataNotFound) as caught:
        kind(root=str(tmp_path / "root")).prepare_data()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{kind.__name__}: ")
    for words in ("tried to download", str(tmp_path / "root"), "$DIFFUSION_DATA", "digits and sprites"):
        assert words in message
    assert {"CIFAR10": "cifar-10-python.tar.gz"}.get(kind.__name__, "train-images-idx3-ubyte") in message
    assert isinstance(caught.value, FileNotFoundError) and not (tmp_path / "root").exists()


def test_download_refuses_a_root_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataNotFound, match="MNIST: no files under"):
        MNIST(root=str(tmp_path / "file" / "root")).prepare_data()
