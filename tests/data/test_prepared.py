"""A prepared folder as a data set: facts, splits and targets; what is missing or damaged is refused in words."""

import json

import numpy as np
import pytest
import torch

from diffusion.data import DataNotFound, Prepared
from diffusion.support.specs import build, spec
from tests import prepared

N = 80


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (N, 3, 6, 10), dtype=np.uint8)


def test_prepared_has_the_facts_of_its_folder(tmp_path, images):
    labels = np.arange(N) % 2
    split = prepared.write(tmp_path / "pets", images, classes=["cat", "dog"], labels=labels)
    data = Prepared(str(tmp_path / "pets"), batch_size=16)
    assert data.shape == (3, 6, 10) and data.channels == 3 and data.name == "pets"
    assert data.class_names == ("cat", "dog") and (data.num_classes, data.context_dim) == (2, 0)
    assert data.scaling.dtype == "uint8" and data.scaling.bounded
    for name, number in (("train", 0), ("test", 1)):
        x, y = data.arrays(name)
        assert np.array_equal(x, images[split == number]) and np.array_equal(y, labels[split == number])
    assert sum(len(x) for x, _ in data.train_dataloader()) == 48  # of 60, in batches of 16
    x0, y = next(iter(data.val_dataloader()))
    assert torch.equal(x0, data.arrays("test")[0][:16].float() / 127.5 - 1) and torch.equal(
        y, data.arrays("test")[1][:16]
    )
    assert torch.equal(data.some("test", torch.tensor([3, 1]))[0], data.arrays("test")[0][[3, 1]])
    again = build(spec(data))
    assert again.shape == data.shape and again.batch_size == 16
    assert Prepared("pets", root=str(tmp_path), labels=False).num_classes == 0
    assert len(Prepared("pets", root=str(tmp_path), limit=7).store("train")[0]) == 7


def test_prepared_targets_are_context_vectors(tmp_path, images):
    targets = np.random.RandomState(1).randn(N, 2)
    split = prepared.write(tmp_path / "x", images, targets=targets, names=["age", "size"])
    data = Prepared(str(tmp_path / "x"))
    assert data.class_names == ("age", "size") and (data.num_classes, data.context_dim) == (0, 2)
    y = data.store("test")[1]
    assert y.dtype == torch.float32 and np.array_equal(y, targets[split == 1].astype(np.float32))
    prepared.write(tmp_path / "both", images, targets=targets, names=["a", "b"], classes=["x"], labels=np.zeros(N))
    assert Prepared(str(tmp_path / "both")).num_classes == 1
    assert Prepared(str(tmp_path / "both"), y="targets").context_dim == 2


def test_prepared_without_classes_is_unconditional(tmp_path, images):
    prepared.write(tmp_path / "x", images)
    data = Prepared(str(tmp_path / "x"))
    assert data.num_classes == data.context_dim == 0 and data.class_names == ()
    assert not data.store("train")[1].any() and len(data.store("train")[1]) == 60


def test_prepared_flips_all_but_the_named_classes(tmp_path, images):
    prepared.write(tmp_path / "x", images, classes=["a", "b"], labels=np.arange(N) % 2)
    data = Prepared(str(tmp_path / "x"), flip=True, no_flip=["b"], batch_size=60)
    known, y = data.arrays("train")
    known = {x.numpy().tobytes(): int(label) for x, label in zip(known, y, strict=True)}
    same = {0: 0, 1: 0}
    for x0, labels in data.train_dataloader():
        for x, label in zip(data.scaling.decode(x0), labels.tolist(), strict=True):
            same[label] += x.numpy().tobytes() in known
    n = torch.bincount(y).tolist()
    assert same[1] == n[1] and 0.2 * n[0] < same[0] < 0.8 * n[0]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_prepared_scales_by_the_statistics_of_the_training_split(tmp_path, images, dtype):
    images = (images.astype(np.float32) * [[[20]], [[7]], [[3]]] + 1000).astype(dtype)
    split = prepared.write(tmp_path / "x", images)
    data = Prepared(str(tmp_path / "x"), batch_size=60)
    x0 = torch.cat([x for x, _ in data.train_dataloader()])
    if dtype == "uint16":
        assert data.scaling.bounded and (x0.min(), x0.max()) == (-1, 1)
    else:
        assert not data.scaling.bounded
        assert x0.mean((0, 2, 3)).abs().max() < 1e-5 and (x0.std((0, 2, 3), correction=0) - 0.5).abs().max() < 1e-5
    raw = torch.cat([data.scaling.decode(x) for x, _ in data.val_dataloader()]).numpy()
    assert raw.dtype == images.dtype and np.allclose(raw, images[split == 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("options, words", [
    ({"y": "targets"}, "y 'targets', but .* has classes; prepare it with them"),
    ({"y": "names"}, "y 'names'"),
    ({"no_flip": ["cow"]}, "no_flip 'cow' is no class; there are: cat, dog"),
])  # fmt: skip
def test_prepared_refuses_wrong_arguments(tmp_path, images, options, words):
    prepared.write(tmp_path / "x", images, classes=["cat", "dog"], labels=np.arange(N) % 2)
    with pytest.raises(ValueError, match=words):
        Prepared(str(tmp_path / "x"), **options)


def test_prepared_refuses_folders_that_are_missing_unfinished_or_damaged(tmp_path, images):
    with pytest.raises(DataNotFound, match="no such folder; write it with: diffusion prepare SOURCE --out"):
        Prepared(str(tmp_path / "nowhere"))
    with pytest.raises(DataNotFound, match="a folder without dataset.json"):
        Prepared(str(tmp_path))
    (tmp_path / ".work").mkdir()
    with pytest.raises(DataNotFound, match="not prepared completely; run the same"):
        Prepared(str(tmp_path))
    folder = tmp_path / "x"
    prepared.write(folder, images, classes=["a"], labels=np.zeros(N))
    facts = json.loads((folder / "dataset.json").read_text())
    for change, words in (
        ({"format": 2}, "format 2, wanted 1"), ({"dtype": "float64"}, "damaged; prepare"), (None, "damaged .*again"),
        ({"images": {"train": 61, "test": 20}}, "80 rows for 81 images"),
        ({"images": {"train": 61, "test": 19}}, "60 images in 'train' and dataset.json 61"),
        ({"shards": facts["shards"][:-1]}, "rows .* of .* images; prepare it again"),
    ):  # fmt: skip
        (folder / "dataset.json").write_text("{" if change is None else json.dumps(facts | change))
        with pytest.raises(ValueError, match=words):
            Prepared(str(folder)).store("train")
    (folder / "dataset.json").write_text(json.dumps(facts))
    (folder / "labels.npy").write_text("x")
    with pytest.raises(ValueError, match="labels.npy: .*prepare the folder again"):
        Prepared(str(folder)).store("train")
