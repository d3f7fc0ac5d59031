import numpy as np
import pytest
import torch

from diffusion.data import Digits, ImageData
from diffusion.data.digits import TEST, stratified


def test_digits_declare_their_properties_before_reading():
    data = Digits()
    assert data.shape == (1, 8, 8) and data.num_classes == 10 and data.context_dim == 0 and not data.flip
    assert Digits(labels=False).num_classes == 0
    assert Digits.class_names == tuple("0123456789") and Digits.channels == 1 and Digits.size == 8


def test_digits_split_is_fixed_disjoint_and_stratified():
    data = Digits()
    (train, y), (test, y_test) = data.arrays("train"), data.arrays("test")
    assert train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8)
    assert train.dtype == torch.uint8 and y.dtype == torch.int64
    assert torch.bincount(y_test).tolist() == [36] * 10
    assert len(set(y[:100].tolist())) == 10  # mixed, so `limit` keeps all classes
    assert train.max() == 255 and set(train.unique().tolist()) == {round(255 * k / 16) for k in range(17)}
    pixels = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in pixels for image in test)
    assert all(torch.equal(a, b) for a, b in zip(data.arrays("test"), Digits().arrays("test"), strict=True))


def test_digits_equal_scikit_learns():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    index = stratified(source.target, TEST)
    assert sorted([*index["train"], *index["test"]]) == list(range(1797))
    for split in ("train", "test"):
        images, y = Digits().arrays(split)
        np.testing.assert_array_equal(np.rint(images[:, 0].numpy() * (16 / 255)), source.images[index[split]])
        np.testing.assert_array_equal(y.numpy(), source.target[index[split]])


def test_digits_loaders_give_scaled_batches():
    data = Digits(batch_size=100, seed=5)
    data.prepare_data()
    data.setup("fit")
    train, val = data.train_dataloader(), data.val_dataloader()
    assert len(train) == 14 and len(val) == 4 and train.flip is False and not val.shuffle and val.flip is False
    known = {image.numpy().tobytes(): int(y) for image, y in zip(*data.arrays("train"), strict=True)}
    for x0, y in train:
        assert x0.shape == (100, 1, 8, 8) and -1 <= x0.min() < x0.max() <= 1
        for image, label in zip(((x0 + 1) * 127.5).round().byte(), y, strict=True):
            assert known[image.numpy().tobytes()] == label  # never mirrored
    assert torch.equal(torch.cat([y for _, y in val]), data.arrays("test")[1])
    assert len(data.test_dataloader().store) == 360


def test_limit_restricts_training_images_only():
    data = Digits(batch_size=64, limit=10)
    assert len(data.arrays("train")[0]) == 10 and len(data.arrays("test")[0]) == 360
    ((x0, _),) = data.train_dataloader()
    assert len(x0) == 10


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"seed": -1}, {"limit": -2}])
def test_image_data_refuses_bad_arguments(bad):
    with pytest.raises(ValueError, match=f"Digits: .*{next(iter(bad))} {next(iter(bad.values()))}"):
        Digits(**bad)


def test_image_data_requires_load():
    with pytest.raises(TypeError, match="abstract"):
        ImageData()
