"""`Arrays`: reading, splitting, errors, and a trained model that follows its vectors."""

import numpy as np
import pytest
import torch

from diffusion import Denoiser
from diffusion.data import Arrays, DataNotFound
from diffusion.data.base import ImageData
from diffusion.denoiser import Condition
from diffusion.denoiser.targets import V
from diffusion.loss.objective import Objective
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.specs import build, spec

N = 400


def bars(v):
    """8x8 pictures of a bar, whose position and brightness are given by vectors (N, 2) in [-1, 1]."""
    images = np.zeros((len(v), 8, 8, 1), np.uint8)
    left = np.rint((v[:, 0] + 1) * 2.5).astype(int)  # 0 .. 5
    for k in range(len(v)):
        images[k, 2:6, left[k] : left[k] + 3] = round(155 + 100 * v[k, 1])
    return images


@pytest.fixture
def files(tmp_path):
    v = np.random.RandomState(0).uniform(-1, 1, (N, 2)).astype(np.float32)
    np.save(tmp_path / "images.npy", bars(v))
    np.save(tmp_path / "v.npy", v)
    np.save(tmp_path / "labels.npy", np.arange(N) % 3)
    return tmp_path


def test_arrays_properties_and_splits(files):
    data = Arrays("images.npy", "v.npy", root=str(files), test=0.1)
    assert isinstance(data, ImageData) and data.shape == (1, 8, 8) and data.channels == 1
    assert data.context_dim == 2 and data.num_classes == 0 and data.class_names == ()
    (images, y), (unseen, its) = data.arrays("train"), data.arrays("test")
    assert len(images) + len(unseen) == N and y.dtype == torch.float32
    for x, v in ((images, y), (unseen, its)):
        assert np.array_equal(x.numpy().transpose(0, 2, 3, 1), bars(v.numpy()))  # each vector stays with its picture
    seen = {x.numpy().tobytes() for x in images}
    assert not seen & {x.numpy().tobytes() for x in unseen}  # no copy of a picture is on both sides
    assert 0.05 * N < len(unseen) < 0.2 * N
    again = build(spec(data))
    assert torch.equal(again.arrays("test")[0], unseen) and again.test == 0.1


def test_arrays_with_labels_with_names_and_without_either(files):
    labels = Arrays(str(files / "images.npy"), str(files / "labels.npy"))
    assert labels.num_classes == 3 and labels.context_dim == 0 and labels.class_names == ("0", "1", "2")
    assert labels.arrays("train")[1].dtype == torch.int64
    named = Arrays("images.npy", "v.npy", names=["place", "light"], root=str(files))
    assert named.class_names == ("place", "light") and named.context_dim == 2
    plain = Arrays("images.npy", root=str(files))
    assert plain.num_classes == plain.context_dim == 0 and len(plain.arrays("train")[1])
    off = Arrays("images.npy", "v.npy", root=str(files), labels=False)
    assert off.context_dim == off.num_classes == 0
    np.save(files / "grey.npy", np.zeros((5, 4, 6), np.uint8))
    np.save(files / "x.npy", np.linspace(0, 1, 5))
    grey = Arrays("grey.npy", "x.npy", root=str(files))
    assert grey.shape == (1, 4, 6) and grey.context_dim == 1  # one number per image


@pytest.mark.parametrize("images, y, options, words", [
    (np.zeros((4, 8, 8, 1), np.float32), None, {}, "wanted uint8"),
    (np.zeros((8, 8), np.uint8), None, {}, "wanted uint8"),
    (np.zeros((4, 8, 8), np.uint8), np.zeros(3), {}, "one row per"),
    (np.zeros((4, 8, 8), np.uint8), np.zeros((4, 0)), {}, "one row per"),
    (np.zeros((4, 8, 8), np.uint8), np.array(["a"] * 4), {}, "wanted integers"),
    (np.zeros((4, 8, 8), np.uint8), np.full((4, 2), np.nan), {}, "nan or infinity"),
    (np.zeros((4, 8, 8), np.uint8), np.array([0, 1, -1, 2]), {}, "labels are 0, 1, 2"),
    (np.zeros((4, 8, 8), np.uint8), np.zeros((4, 3)), {"names": ["a", "b"]}, "2 names for 3"),
    (np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 3]), {"names": ["a", "b"]}, "2 names for 4"),
    (np.zeros((4, 8, 8), np.uint8), None, {"test": 1.5}, "(0, 1)"),
])  # fmt: skip
def test_arrays_refuse_wrong_shapes_and_values(images, y, options, words, tmp_path):
    np.save(tmp_path / "i.npy", images)
    if y is not None:
        np.save(tmp_path / "y.npy", y)
    with pytest.raises(ValueError) as error:
        Arrays("i.npy", None if y is None else "y.npy", root=str(tmp_path), **options)
    assert words in str(error.value)


def test_arrays_refuse_files_that_are_not_arrays(tmp_path):
    with pytest.raises(DataNotFound, match="no file nowhere.npy"):
        Arrays("nowhere.npy", root=str(tmp_path))
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="wanted a .npy array"):
        Arrays("text.npy", root=str(tmp_path))


def test_a_sample_follows_its_vector(files):
    """Position and brightness of the bar in samples of unseen vectors, after seconds of training."""
    torch.manual_seed(0)
    data = Arrays("images.npy", "v.npy", root=str(files), batch_size=64)
    net = ResidualMLP(1, (8, 8), width=128, depth=3, context_dim=data.context_dim)
    denoiser, objective = Denoiser(net, Cosine(), V()), Objective()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    loader = data.train_dataloader()
    for epoch in range(80):
        loader.set_epoch(epoch)
        for x0, v in loader:
            optimizer.zero_grad()
            objective(denoiser, x0, Condition(v)).loss.backward()
            optimizer.step()
    net.eval()
    v = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        walk = denoiser.bind(Condition(v))
        x = DDIM(20).sample(walk, torch.randn(40, 1, 8, 8), Cosine()).clamp(-1, 1)
        null = DDIM(20).sample(denoiser.bind(Condition()), torch.randn(40, 1, 8, 8), Cosine()).clamp(-1, 1)

    def read(x):
        columns = ((x[:, 0, 2:6] + 1) / 2).mean(1)  # (N, 8)
        place = (columns * torch.arange(8)).sum(1) / columns.sum(1) - 1
        return place / 2.5 - 1, (columns.sum(1) / 3 * 255 - 155) / 100

    for got, wanted, free in zip(read(x), v.T, read(null), strict=True):
        error = float((got - wanted).square().mean().sqrt())
        assert error < 0.35, error  # measured: 0.23 and 0.26; the standard deviation of the vectors is 0.58
        assert float(torch.corrcoef(torch.stack([got, wanted]))[0, 1]) > 0.75  # measured: 0.94 and 0.89
        assert float((free - wanted).square().mean().sqrt()) > 0.4  # the null row carries no information about them
