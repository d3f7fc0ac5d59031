import io
import logging
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from diffusion.data import CIFAR10, CIFAR100, DataNotFound
from diffusion.data.cifar import read_image_folder


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def put(root, packed):
    """Two classes with two training images and one test image each, all of a single grey."""
    place = root / "cifar10-jpeg"
    place.mkdir()
    files = {
        f"{split}/{kind}/{i:04}.jpg": picture(40 * i + 10 * label + 5)
        for split, n in (("train", 2), ("test", 1))
        for label, kind in enumerate(("airplane", "automobile"))
        for i in range(n)
    }
    if packed:
        with tarfile.open(place / "cifar10-jpeg.tar.gz", "w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return place / "cifar10-jpeg.tar.gz"
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_reads_a_jpeg_folder_or_archive(tmp_path, packed, caplog):
    put(tmp_path, packed)
    data = CIFAR10(root=str(tmp_path), batch_size=2)
    data.prepare_data()  # no download
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        images, y = data.arrays("train")
    assert "not comparable with published FIDs" in caplog.text
    assert images.shape == (4, 3, 32, 32) and y.tolist() == [0, 1, 0, 1]  # classes alternate
    assert images.float().mean((1, 2, 3)).round().tolist() == [5, 15, 45, 55]
    assert data.arrays("test")[1].tolist() == [0, 1]
    assert data.train_dataloader().flip is True and data.val_dataloader().flip is False


def test_a_damaged_archive_is_named(tmp_path):
    archive = put(tmp_path, packed=True)
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cifar10-jpeg.tar.gz.*truncated"):
        CIFAR10(root=str(tmp_path)).setup("fit")


def test_image_folder_refuses_unknown_classes_and_empty_splits(tmp_path):
    place = put(tmp_path, packed=False)
    with pytest.raises(ValueError, match="no val/"):
        read_image_folder(place, "val", CIFAR10.class_names)
    (place / "train" / "airplane").rename(place / "train" / "zeppelin")
    with pytest.raises(ValueError, match="class 'zeppelin'"):
        read_image_folder(place, "train", CIFAR10.class_names)


def test_cifar_names_the_absent_files(tmp_path):
    for kind in (CIFAR10, CIFAR100):
        with pytest.raises(DataNotFound, match=datasets.__dict__[kind.__name__].base_folder):
            kind(root=str(tmp_path)).setup("fit")


def test_cifar_declares_its_properties():
    assert CIFAR10().shape == CIFAR100().shape == (3, 32, 32)
    assert CIFAR10().num_classes == 10 and CIFAR100().num_classes == 100 == len(set(CIFAR100.class_names))
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)


@pytest.mark.slow
def test_real_cifar_jpeg_archive(real_root):
    if not (real_root / "cifar10-jpeg").is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: no cifar10-jpeg in {real_root}")
    data = CIFAR10(root=str(real_root))
    data.prepare_data()
    images, y = data.arrays("train")
    assert images.shape == (50000, 3, 32, 32) and torch.bincount(y).tolist() == [5000] * 10
    mean = images.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)  # the published means of the original
