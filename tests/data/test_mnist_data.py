import gzip
import hashlib
import shutil

import numpy as np
import pytest
import torch

from diffusion.data import MNIST, DataNotFound, FashionMNIST
from diffusion.data.mnist import PARTS


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny(monkeypatch):
    """An MNIST of 20 + 10 images: the bytes of its four files, with their md5 registered."""
    random, files = np.random.RandomState(0), {}
    for part, n in (("train", 20), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = idx(random.randint(256, size=(n, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n) % 10)
    monkeypatch.setattr(MNIST, "md5", {name: hashlib.md5(data).hexdigest() for name, data in files.items()})
    return files


def write(root, files, packed):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in files.items():
        (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return raw


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_reads_packed_and_unpacked_files_and_pads(tmp_path, tiny, packed):
    write(tmp_path, tiny, packed)
    data = MNIST(root=str(tmp_path))
    data.prepare_data()  # finds the files: no download
    images, y = data.arrays("train")
    assert images.shape == (20, 1, 32, 32) and y.tolist() == [i % 10 for i in range(20)]
    assert images[:, :, 2:30, 2:30].numpy().tobytes() == tiny["train-images-idx3-ubyte"][16:]
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert images[..., border].max() == 0
    assert len(data.arrays("test")[0]) == 10
    assert data.train_dataloader().flip is False  # never for digits


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_names_a_truncated_file(tmp_path, tiny, packed):
    raw = write(tmp_path, tiny, packed)
    file = next(raw.glob("t10k-images*"))
    file.write_bytes(file.read_bytes()[:-500])
    data = MNIST(root=str(tmp_path))
    assert len(data.arrays("train")[0]) == 20
    with pytest.raises(ValueError, match=f"{file.name}.*truncated"):
        data.arrays("test")


def test_mnist_names_absent_files_without_download(tmp_path):
    with pytest.raises(DataNotFound, match="prepare_data"):
        MNIST(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_mnist_reads_the_real_files(real_root, kind):
    if not (real_root / kind.__name__).is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: no {kind.__name__} in {real_root}")
    data = kind(root=str(real_root))
    data.prepare_data()
    data.setup("fit")
    (images, y), (test, y_test) = data.arrays("train"), data.arrays("test")
    assert images.shape == (60000, 1, 32, 32) and test.shape == (10000, 1, 32, 32)
    assert torch.bincount(y_test).sum() == 10000 and len(torch.bincount(y)) == data.num_classes == 10
    mean = images[:, :, 2:30, 2:30].double().mean().item() / 255
    assert mean == pytest.approx({MNIST: 0.1307, FashionMNIST: 0.2860}[kind], abs=5e-5)  # the published means
    assert data.train_dataloader().flip is False


def test_mnist_equals_torchvision(real_root, tmp_path):
    from torchvision import datasets

    if not (real_root / "MNIST").is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: no MNIST in {real_root}")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST.md5:
        with gzip.open(real_root / "MNIST" / "raw" / f"{name}.gz") as packed, open(raw / name, "wb") as file:
            shutil.copyfileobj(packed, file)
    theirs = datasets.MNIST(str(tmp_path), train=False)
    images, y = MNIST(root=str(real_root)).arrays("test")
    assert torch.equal(images[:, 0, 2:30, 2:30], theirs.data) and torch.equal(y, theirs.targets)


def test_fashion_mnist_names_its_classes():
    assert set(PARTS) == {"train", "test"} and FashionMNIST.class_names[9] == "Ankle boot"
    assert MNIST().shape == (1, 32, 32) and len(FashionMNIST.class_names) == 10
