"""Images reduced to the means of blocks: the data of a cascade's base."""

import numpy as np
import pytest
import torch

from diffusion.data import Arrays, Digits, Prepared, Sprites
from diffusion.data.recorded import open_data
from diffusion.data.reduced import Reduced, reduced
from diffusion.data.store import InMemory
from diffusion.denoiser.hints import LowResolution
from diffusion.judging.judge import called, recipe
from tests import prepared


def test_reduced_images_are_the_hints_of_the_later_stage():
    """Up to their rounding to 8 bits, in the same order and with the same targets."""
    large, small = Digits(), Digits(reduce=2)
    assert small.shape == (1, 4, 4) and small.num_classes == 10 and large.shape == (1, 8, 8)
    for split in ("train", "test"):
        (x, y), (low, its) = large.arrays(split), small.arrays(split)
        hint = LowResolution(2)(large.scaling.encode(x))
        assert float((small.scaling.encode(low) - hint).abs().max()) <= 0.5 / 127.5 + 1e-6
        assert torch.equal(y, its) and low.dtype == torch.uint8
    x0, _ = next(iter(small.val_dataloader()))
    assert x0.shape[1:] == (1, 4, 4)
    assert Sprites(drawn=True, reduce=4).shape == (3, 4, 4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_reduced_images_of_every_type(dtype, tmp_path):
    rng = np.random.default_rng(0)
    images = (rng.random((20, 6, 9, 2)) * {"uint8": 255, "uint16": 65535, "float32": 3}[dtype]).astype(dtype)
    np.save(tmp_path / "x.npy", images)
    data = Arrays(str(tmp_path / "x.npy"), layout="HWC", reduce=3, test=0.2)
    assert data.shape == (2, 2, 3)
    whole = Arrays(str(tmp_path / "x.npy"), layout="HWC", test=0.2).arrays("train")[0]
    means = whole.numpy().astype(np.float64).reshape(-1, 2, 2, 3, 3, 3).mean((3, 5))
    found = data.arrays("train")[0]
    assert found.dtype == whole.dtype
    assert np.abs(found.numpy().astype(np.float64) - means).max() <= (1e-6 if dtype == "float32" else 0.5)


def test_reduced_images_of_files_are_read_when_they_are_taken(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 6), dtype=np.uint8)
    folder = tmp_path / "x"
    prepared.write(folder, images)
    small, large = (Prepared(str(folder), reduce=k, batch_size=4) for k in (2, 1))
    store, whole = small.store("train")[0], large.store("train")[0]
    assert isinstance(store, Reduced) and store.shape == small.shape and len(store) == len(whole)
    index = torch.tensor([3, 0, 5])
    assert torch.equal(store.take(index), reduced(whole.take(index), 2))
    assert store.fingerprint != whole.fingerprint and store.nbytes * 4 == whole.nbytes
    assert torch.equal(next(iter(small.train_dataloader()))[1], next(iter(large.train_dataloader()))[1])


def test_reduced_stores_in_memory_are_reduced_once():
    x = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    store = Reduced.of(InMemory(x), 2)
    assert isinstance(store, InMemory) and torch.equal(store.images, reduced(x, 2))
    assert Reduced.of(store, 1) is store


def test_a_reduced_data_set_is_rebuilt_and_has_its_own_judge(tmp_path):
    data = Digits(reduce=2)
    assert called(data) == "digits-by2" and '"reduce": 2' in " ".join(recipe(data))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "config.yaml").write_text("data:\n  class_path: Digits\n  init_args: {reduce: 2}\n")
    assert open_data(tmp_path / "checkpoints" / "last.ckpt").shape == (1, 4, 4)
    assert open_data(tmp_path / "checkpoints" / "last.ckpt", reduce="1").shape == (1, 8, 8)


def test_sizes_that_the_factor_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="data.reduce: 3 does not divide images of 8x8; give a divisor of both sides"):
        _ = Digits(reduce=3).shape
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Digits(reduce=0)
