"""The training images nearest to samples: right answers, and the layout of their sheet."""

import numpy as np
import torch

from diffusion import Denoiser, Pipeline, pictures
from diffusion.data import Digits, Sprites
from diffusion.denoiser.targets import V
from diffusion.generation.nearest import nearest_images, seen, sheet
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine


def digits():
    """The training digits, which are not mirrored in training."""
    return seen(Digits(), Digits().scaling)


def test_a_copy_of_a_training_image_is_found_at_distance_0():
    """Copies, one with an error that rounding to 8 bits removes, and one that is a grey level off in a pixel."""
    train = digits()
    x0 = train[torch.tensor([5, 300, 77])].tensor()
    x0[1] += 0.003  # less than half a grey level, 1 / 255
    change = torch.where(x0[2, 0, 3, 3] > 0, -1, 1) * 2 / 255
    x0[2, 0, 3, 3] += change
    found = nearest_images(x0, train, 3)
    assert found.index[:, 0].tolist() == [5, 300, 77]
    assert found.distances[:2, 0].tolist() == [0, 0]
    assert abs(float(found.distances[2, 0]) - 2 / 255) < 1e-6
    assert torch.equal(found.images[0, 0], train[torch.tensor([5])].tensor()[0])
    assert "least 0 (picture 0, training image 5)" in found.words


def test_a_mirrored_copy_is_found_where_training_mirrors():
    data = Sprites(drawn=True, limit=200)
    data.flip, data.no_flip_classes = True, (4,)
    raw, y = data.arrays("train")
    chosen = torch.stack([(y.argmax(1) == k).nonzero()[3, 0] for k in (0, 1, 4)])
    train = seen(data, data.scaling)
    assert len(train) == 400 - int(y[:, 4].sum())
    found = nearest_images(data.scaling.encode(raw[chosen].flip(-1)), train, 4)
    assert torch.equal(found.index[:2, 0], chosen[:2]) and found.distances[:2, 0].tolist() == [0, 0]
    assert torch.equal(train.scaling.decode(found.images[:2, 0]), raw[chosen[:2]].flip(-1))
    symmetric = (raw[chosen] == raw[chosen].flip(-1)).flatten(1).all(1)
    assert torch.equal(found.mirrored[:2, 0], ~symmetric[:2])
    assert not symmetric[2] and float(found.distances[2, 0]) > 0
    assert not found.mirrored[y[found.index].argmax(2) == 4].any()
    shown = train.scaling.encode(raw[found.index.flatten()]).unflatten(0, (3, 4))
    assert torch.equal(found.images, torch.where(found.mirrored[..., None, None, None], shown.flip(-1), shown))


def test_an_image_and_its_mirror_image_are_one_neighbour():
    """Each symmetric image is found twice, and as many different ones as were asked for are returned."""
    data = Sprites(drawn=True, limit=30)
    data.flip = True
    raw, _ = data.arrays("train")
    raw.copy_(torch.cat([raw[..., :8], raw[..., :8].flip(-1)], -1))
    found = nearest_images(data.scaling.encode(raw[:5]), seen(data, data.scaling), 30)
    assert [len(row.unique()) for row in found.index] == [30] * 5 and (found.distances.diff(dim=1) >= 0).all()


def test_distances_ascend_and_are_those_of_the_images():
    train = digits()
    x0 = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = nearest_images(x0, train, 5)
    rounded = train.scaling.encode(train.scaling.decode(x0)).double()
    every = (rounded[:, None] - train.tensor().double()).flatten(2).norm(dim=2)
    wanted, index = every.sort(1)
    assert torch.allclose(found.distances, wanted[:, :5]) and torch.equal(found.index, index[:, :5])
    assert torch.equal(found.images, train[index[:, :5].flatten()].tensor().unflatten(0, (4, 5)))
    kept = found.arrays(train.scaling)
    assert kept["nearest"].shape == (4, 5, 8, 8, 1) and kept["nearest"].dtype == np.uint8
    assert np.array_equal(kept["nearest"][2, 3, ..., 0], Digits().store("train")[0].take(index[2, 3:4])[0, 0].numpy())


def test_sheet_has_one_column_per_sample():
    """Five samples in rows of three: above each pair of neighbours its sample, 8 pixels enlarged 24 times."""
    train = digits()
    pipeline = Pipeline(Denoiser(ResidualMLP(1, (8, 8), width=8, depth=1), Cosine(10), V()), shape=(1, 8, 8))
    x0 = train[torch.arange(5)].tensor()
    found = nearest_images(x0, train, 2)
    made = sheet(pipeline, x0, found, columns=3)
    scale = 24  # about 640 pixels wide
    one, below = 10 * scale, 19 * scale  # a row of pictures with its edges; two rows
    assert made.shape == (2 * (one + scale + below) + 2 * scale, 28 * scale, 1)
    top = one + scale + below + 2 * scale  # of the second band
    starts = (top, top + one + scale, top + one + 10 * scale)
    for column, k in ((0, 3), (1, 4)):
        left = (1 + 9 * column) * scale
        for start, image in zip(starts, (x0[k], *found.images[k]), strict=True):
            part = made[start + scale : start + 9 * scale : scale, left : left + 8 * scale : scale]
            assert np.array_equal(part, pictures.to_uint8(image[None])[0])
    assert (made[top:, 19 * scale : -scale] == 128).all()  # no sixth sample
