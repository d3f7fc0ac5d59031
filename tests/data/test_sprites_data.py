import numpy as np
import pytest
import torch

from diffusion.data import DataNotFound, Sprites
from diffusion.data.sprites import PAIRS, split_by_picture
from diffusion.judging.judge import called


def pair(n=60, seed=0):
    random = np.random.RandomState(seed)
    return random.randint(256, size=(n, 16, 16, 3), dtype=np.uint8), np.eye(5)[np.arange(n) % 5]


def save(folder, images, labels, names=("i.npy", "l.npy")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, (images, labels), strict=True):
        np.save(folder / name, array)
    return {"images": str(folder / names[0]), "labels_file": str(folder / names[1])}


def test_sprites_declare_their_properties():
    data = Sprites()
    assert data.shape == (3, 16, 16) and data.context_dim == 5 and data.num_classes == 0
    assert Sprites(labels=False).context_dim == 0


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("inside", ["sprites", "."])
def test_sprites_find_their_files_under_the_root(tmp_path, names, inside):
    images, labels = pair()
    save(tmp_path / inside, images, labels, names)
    data = Sprites(root=str(tmp_path))
    data.setup("fit")
    (train, y), (test, y_test) = data.arrays("train"), data.arrays("test")
    assert len(train) == 57 and len(test) == 3 and y.dtype == torch.float32 and train.dtype == torch.uint8
    known = {image.transpose(2, 0, 1).tobytes(): row for image, row in zip(images, labels, strict=True)}
    assert len(known) == 60
    for image, row in [*zip(train, y, strict=True), *zip(test, y_test, strict=True)]:
        assert (known.pop(image.numpy().tobytes()) == row.numpy()).all()
    assert not known


def test_named_files_take_precedence(tmp_path):
    save(tmp_path / "root", *pair(60), PAIRS[0])
    data = Sprites(root=str(tmp_path / "root"), **save(tmp_path / "mine", *pair(40, 1)))
    assert len(data.arrays("train")[0]) == 38


def test_images_are_mirrored_where_a_data_set_says_so_and_not_in_no_flip_classes(tmp_path):
    images, labels = pair(400)
    images[..., 0] = np.arange(16)  # red grows to the right
    data = Sprites(batch_size=64, **save(tmp_path, images, labels))
    for flip in (False, True):
        data.flip, data.no_flip_classes, mirrored = flip, (4,), {True: 0, False: 0}
        for x0, y in data.train_dataloader():
            assert y.shape == (64, 5)
            flipped = x0[:, 0, 0, 0] > x0[:, 0, 0, 15]
            for side in mirrored:
                mirrored[side] += int(flipped[(y[:, 4] == 1) == side].sum())
        assert mirrored[True] == 0 and (110 <= mirrored[False] <= 180 if flip else not mirrored[False])  # of about 256
    for x0, _ in data.val_dataloader():
        assert (x0[:, 0, 0, 0] < x0[:, 0, 0, 15]).all()


def test_copies_of_a_picture_stay_in_one_split():
    images, _ = pair(100)
    images = np.concatenate([images, images[::-1], images])
    split = split_by_picture(images)
    assert sorted([*split["train"], *split["test"]]) == list(range(300))
    assert len(split["test"]) == 15
    train = {images[i].tobytes() for i in split["train"]}
    assert not any(images[i].tobytes() in train for i in split["test"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, y: (i[:, :8], y), r"wanted uint8 \(N,16,16,3\), got uint8 \(60, 8, 16, 3\)"),
        (lambda i, y: (i.astype(np.float32), y), "got float32"),
        (lambda i, y: (i, y[:, :4]), r"wanted numbers \(N,5\), got float64 \(60, 4\)"),
        (lambda i, y: (i, y[:-1]), "60 images and .* 59 labels"),
        (lambda i, y: (i, y * 2), "one-hot rows, got .* in row 0 .60 such"),
        (lambda i, y: (i, y + np.eye(60, 5, k=-7)), "in row 7 .5 such"),
        (lambda i, y: (i, y * np.where(np.arange(60) == 3, np.nan, 1)[:, None]), "row 3 .1 such"),
        (lambda i, y: (i, y.astype(str)), "wanted numbers"),
        (lambda i, y: (i, y.astype(object)), "wanted a .npy array of numbers"),
    ],
)
def test_sprites_refuse_bad_arrays(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        Sprites(**save(tmp_path, *change(*pair()))).setup("fit")


def test_sprites_refuse_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="both images and labels_file"):
        Sprites(images="a.npy")
    with pytest.raises(ValueError, match="drawn"):
        Sprites(images="a.npy", labels_file="b.npy", drawn=True)
    with pytest.raises(DataNotFound, match="a.npy"):
        Sprites(images=str(tmp_path / "a.npy"), labels_file=str(tmp_path / "b.npy")).setup("fit")
    (tmp_path / "a.npy").write_text("not an array")
    np.save(tmp_path / "b.npy", np.eye(5))
    with pytest.raises(ValueError, match="a.npy: wanted a .npy"):
        Sprites(images=str(tmp_path / "a.npy"), labels_file=str(tmp_path / "b.npy")).setup("fit")


@pytest.mark.parametrize("drawn", [False, True])
def test_without_files_sprites_are_drawn(tmp_path, drawn):
    if drawn:
        save(tmp_path, *pair(), PAIRS[0])
    data = Sprites(root=str(tmp_path), drawn=drawn, batch_size=256)
    data.prepare_data()
    data.setup("fit")
    (train, y), (test, y_test) = data.arrays("train"), data.arrays("test")
    assert len(train) == 7125 and len(test) == 375
    assert (y.sum(0) + y_test.sum(0)).tolist() == [1500] * 5
    assert y_test.sum(0).min() > 45 and len(set(y[:50].argmax(1).tolist())) == 5
    seen = {image.numpy().tobytes() for image in train}
    assert len(seen) == 7125 and not any(image.numpy().tobytes() in seen for image in test)


def test_sprites_read_the_real_files(real_root):
    if not (real_root / "sprites").is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: no sprites in {real_root}")
    data = Sprites(root=str(real_root))
    data.setup("fit")
    (train, y), (test, y_test) = data.arrays("train"), data.arrays("test")
    assert len(train) + len(test) == 7618 and 0.04 < len(test) / 7618 < 0.06
    assert ((y.sum(1) == 1) & ((y == 0) | (y == 1)).all(1)).all() and len(y_test) == len(test)


def test_drawn_sprites_captions_and_files_have_judges_of_their_own(tmp_path):
    files = save(tmp_path / "mine", *pair(40))
    empty, options = str(tmp_path), ({}, {"drawn": True}, {"captions": True}, files)
    assert [called(Sprites(root=empty, **o)) for o in options] == [
        "sprites-drawn", "sprites-drawn", "sprites-text", "sprites",
    ]  # fmt: skip
