"""`Arrays`: reading, splitting, errors, and a trained model that follows its vectors."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion import Denoiser
from diffusion.data import Arrays, DataNotFound
from diffusion.data.base import ImageData
from diffusion.data.sprites import split_by_picture
from diffusion.denoiser import Condition
from diffusion.denoiser.targets import V
from diffusion.loss.objective import Objective
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.scaling import Scaling, channels_first
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
    (np.zeros((4, 8, 8, 1), np.float64), None, {}, "wanted uint8, uint16, float32"),
    (np.zeros((4, 8, 0, 1), np.uint8), None, {}, "wanted uint8"),
    (np.zeros((4, 8, 8), np.uint8), None, {"layout": "NHWC"}, "layout must be auto, HWC or CHW"),
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


@pytest.mark.slow
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


# --- any type, any size -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2", ">f4"])
@pytest.mark.parametrize("shape, layout, wanted", [
    ((6, 10), "auto", (1, 6, 10)), ((6, 10, 3), "auto", (3, 6, 10)), ((5, 6, 10), "auto", (5, 6, 10)),
    ((6, 10, 5), "auto", (5, 6, 10)), ((4, 4, 4), "CHW", (4, 4, 4)), ((2, 6, 10), "HWC", (10, 2, 6)),
])  # fmt: skip
def test_arrays_of_every_type_and_layout(dtype, shape, layout, wanted, tmp_path):
    random = np.random.RandomState(0)
    images = (random.rand(40, *shape) * (200 if dtype == "uint8" else 9000)).astype(dtype)
    np.save(tmp_path / "i.npy", images)
    data = Arrays("i.npy", root=str(tmp_path), layout=layout, batch_size=38, test=0.1)
    assert data.shape == wanted and data.channels == wanted[0]
    raw = torch.cat([data.arrays(split)[0] for split in ("train", "test")])
    images = channels_first(images, layout)
    known = {np.ascontiguousarray(x, np.dtype(dtype).newbyteorder("=")).tobytes() for x in images}
    assert {x.numpy().tobytes() for x in raw} == known
    x0, _ = next(iter(data.train_dataloader()))
    assert x0.shape[1:] == wanted and x0.dtype == torch.float32
    assert data.scaling.dtype == np.dtype(dtype).name
    if data.scaling.dtype == "float32":
        assert not data.scaling.bounded
        x0 = data.scaling.encode(data.arrays("train")[0])
        assert x0.mean((0, 2, 3)).abs().max() < 1e-5 and (x0.std((0, 2, 3), correction=0) - 0.5).abs().max() < 1e-5
    elif data.scaling.dtype == "uint16":
        x0 = data.scaling.encode(data.arrays("train")[0])
        assert data.scaling.bounded and x0.min() == -1 and x0.max() == 1
    back = data.scaling.decode(data.scaling.encode(raw))
    assert back.dtype == raw.dtype and np.allclose(back.numpy(), raw.numpy(), rtol=1e-6, atol=0.009)


def test_arrays_refuse_numbers_that_are_not_finite(tmp_path):
    images = np.ones((50, 4, 4), np.float32)
    images[7, 1, 2] = np.nan
    np.save(tmp_path / "i.npy", images)
    with pytest.raises(ValueError, match="i.npy: wanted finite numbers, got nan or infinity in image 7"):
        for split in ("train", "test"):
            Arrays("i.npy", root=str(tmp_path)).store(split)


def by_unique(images, share=0.05):
    """The split as it was made before, by `np.unique` over whole rows."""
    rows = np.ascontiguousarray(images.reshape(len(images), -1))
    _, which = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_inverse=True)
    random = np.random.RandomState(0)
    kinds = int(which.max()) + 1
    in_test = (random.permutation(kinds) < max(1, round(kinds * share)))[which]
    order = random.permutation(len(images))
    return {"train": order[~in_test[order]], "test": order[in_test[order]]}


@pytest.mark.parametrize("seed", range(4))
def test_the_split_of_existing_data_is_what_it_was(seed, tmp_path):
    """With copies, common beginnings, and from a file that is mapped."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 2 if seed else 256, (3000, 3, 2 + seed, 1), dtype=np.uint8)
    images[:, 0] = 200
    images[100:300] = images[:200]
    np.save(tmp_path / "i.npy", images)
    for given in (images, np.load(tmp_path / "i.npy", mmap_mode="r")):
        for split, index in split_by_picture(given).items():
            assert np.array_equal(index, by_unique(images)[split])


PEAK = """
import resource, sys
from diffusion.data import Arrays
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
data = Arrays(sys.argv[1])
before = peak()
data.setup("fit")
print(peak() - before)
"""


@pytest.mark.slow
def test_opening_arrays_takes_the_memory_of_the_file_and_of_the_images(tmp_path):
    """The file is mapped, so that its pages count as long as there is room, and each image is copied once."""
    images = np.random.RandomState(0).randint(0, 256, (2**14, 64, 64, 3), dtype=np.uint8)  # 192 MiB
    np.save(tmp_path / "i.npy", images)
    ended = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "i.npy")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 2.3 * 192  # MiB; seen before: 5 x


# --- pairs ------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Images (5, 8, 12) of floats, and for each a smaller one of two channels; both hold the image's number."""
    random = np.random.RandomState(0)
    images = random.randn(N, 5, 8, 12).astype(np.float32)
    low = random.randint(0, 60000, (N, 4, 6, 2)).astype(np.uint16)
    images[:, 0, 0, 0], low[:, 0, 0, 0] = np.arange(N), np.arange(N)
    np.save(tmp_path / "i.npy", images)
    np.save(tmp_path / "low.npy", low)
    return tmp_path


def test_each_pair_stays_with_its_image(pairs):
    data = Arrays("i.npy", condition="low.npy", root=str(pairs), flip=True, batch_size=50)
    assert data.paired["size"] == [2, 4, 6] and data.paired["scaling"]["dtype"] == "uint16"
    assert not data.paired["resize"]
    scaling, mirrored = Scaling.of(data.paired["scaling"]), 0
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for x0, _, pair in loader:
            image, low = data.scaling.decode(x0), scaling.decode(pair)
            assert low.dtype == torch.uint16 and low.shape[1:] == (2, 4, 6)
            for x, z in zip(image, low.int(), strict=True):
                ends = [(x[0, 0, k] - z[0, 0, k]).abs() < 0.01 for k in (0, -1)]
                assert any(ends)
                mirrored += int(ends[1])
    assert 0.3 * N < mirrored < 0.7 * N
    raw = data.pairs("test").take(torch.tensor([1]))
    assert raw[0, 0, 0, 0].int() == data.some("test", torch.tensor([1]))[0][0, 0, 0, 0].round()


def test_pairs_of_another_number_are_refused(pairs):
    np.save(pairs / "few.npy", np.zeros((3, 4, 6), np.uint8))
    with pytest.raises(ValueError, match=f"few.npy: 3 images for {N} of i.npy"):
        Arrays("i.npy", condition="few.npy", root=str(pairs))
