"""Every kind of source gives the same images: a folder, archives, tables, arrays, batches, data sets by name."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion.preparing.sources.pickles import load


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(picture):
    """(24, 24, 24, 3) uint8, and their labels, 12 of each of two."""
    return np.stack([picture(i) for i in range(24)]), np.repeat([0, 1], 12)


def test_a_folder_of_class_folders(make, photos, picture):
    made = make(photos)
    assert made.facts["classes"] == ["cat", "dog"] and made.facts["shape"] == [3, 24, 24]
    assert made.labels.tolist() == [0] * 12 + [1] * 12
    names = [line["file"] for line in made.manifest]
    assert names[:12] == [f"cat/{i}.png" for i in range(12)]  # 2 before 10
    assert all((made.image(f"cat/{i}.png") == picture(i).transpose(2, 0, 1)).all() for i in range(12))
    assert made.facts["images"]["train"] + made.facts["images"]["test"] == 24


def test_folders_around_the_classes_are_passed_over(make, photos, tmp_path):
    (tmp_path / "outer/more").mkdir(parents=True)
    photos.rename(tmp_path / "outer/more/photos")
    assert make(tmp_path / "outer").facts["classes"] == ["cat", "dog"]


def test_a_source_with_its_own_split(make, photos, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "set/train" / name).mkdir()
        for i in range(3):
            (photos / name / f"{i}.png").rename(tmp_path / f"set/train/{name}/{i}.png")
        (photos / name).rename(tmp_path / "set/val" / name)
    made = make(tmp_path / "set")
    assert made.facts["classes"] == ["cat", "dog"] and made.facts["images"] == {"train": 6, "test": 18}
    assert all(line["split"] == (line["file"][:3] == "val") for line in made.manifest)


def test_a_flat_folder_has_no_classes(make, photos):
    made = make(photos / "cat")
    assert made.facts["classes"] == [] and not (made.folder / "labels.npy").exists()
    assert make(photos, label="none").facts["classes"] == []


def test_metadata_csv(make, photos):
    rows = ["file_name,text,kind,age"] + [f"cat/{i}.png,cat number {i},{'ab'[i % 2]},{i / 2}" for i in range(12)]
    (photos / "metadata.csv").write_text("\n".join([*rows, "cat/absent.png,not here,a,1"]))
    made = make(photos, label="kind", targets="age")
    assert made.facts["classes"] == ["a", "b"] and made.facts["targets"] == ["age"]
    assert made.labels.tolist() == [0, 1] * 6 and made.captions[3] == "cat number 3"
    assert np.load(made.folder / "targets.npy").tolist() == [[i / 2] for i in range(12)]
    assert "not there" in made.by_name["cat/absent.png"]["reason"]
    assert "no class" in made.by_name["dog/3.png"]["reason"] and made.by_name["metadata.csv"]["reason"] == "metadata"


def test_metadata_jsonl_beside_its_images(make, photos):
    lines = [json.dumps({"file_name": f"{i}.png", "label": "x", "text": None if i else "first"}) for i in range(12)]
    (photos / "cat/metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    made = make(photos / "cat")
    assert made.facts["classes"] == ["x"] and made.captions == ["first", *[None] * 11]


def test_captions_beside_the_images(make, photos):
    (photos / "cat/3.txt").write_text(" a cat\nof two lines ", encoding="utf-8-sig")
    (photos / "cat/99.txt").write_text("nobody's")
    made = make(photos)
    assert made.captions[3] == "a cat\nof two lines" and made.captions[4] is None and len(made.captions) == 24
    assert "describes the image" in made.by_name["cat/3.txt"]["reason"]
    assert "there is none" in made.by_name["cat/99.txt"]["reason"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_archives_are_read_in_place(make, photos, tmp_path, kind):
    path, files = tmp_path / f"photos.{kind}", sorted(photos.rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"photos/{file.relative_to(photos)}")
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            archive.add(photos, "photos")
    made, plain = make(path), make(photos)
    assert made.facts["classes"] == ["cat", "dog"]
    assert (made.images == plain.images).all() and (made.split == plain.split).all()
    assert [line["sha256"] for line in made.manifest] == [line["sha256"] for line in plain.manifest]
    assert not (made.folder / ".work").exists()


def test_webdataset_shards(make, images, tmp_path):
    (tmp_path / "shards").mkdir()
    for k in range(2):
        with tarfile.open(tmp_path / f"shards/part-{k:03d}.tar", "w") as archive:
            for i in range(12 * k, 12 * k + 12):
                for name, data in (
                    (f"{i:04d}.png", png(images[0][i])),
                    (f"{i:04d}.cls", str(images[1][i]).encode()),
                    (f"{i:04d}.txt", f"number {i}".encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    made = make(tmp_path / "shards")
    assert made.facts["classes"] == ["0", "1"] and made.labels.tolist() == images[1].tolist()
    assert made.captions == [f"number {i}" for i in range(24)]
    assert (made.images == images[0].transpose(0, 3, 1, 2)).all()
    assert made.manifest[0]["file"] == "part-000.tar/0000.png"


def test_parquet_as_the_hub_has_it(make, images, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["zebra", "ape"], "_type": "ClassLabel"}}
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (tmp_path / "data").mkdir()
    for k, part in enumerate(("train", "test")):
        these = slice(12 * k, 12 * k + 12)
        table = pyarrow.table({
            "image": [{"bytes": png(i), "path": None} for i in images[0][these]],
            "label": [0, 1] * 6, "age": [float(i) for i in range(12)],
        })  # fmt: skip
        file = tmp_path / f"data/{part}-00000-of-00001.parquet"
        parquet.write_table(table.replace_schema_metadata(meta), file, row_group_size=5)
    made = make(tmp_path / "data", targets="age")
    assert made.facts["classes"] == ["zebra", "ape"] and made.facts["images"] == {"train": 12, "test": 12}
    order = [*range(12, 24), *range(12)]  # test before train
    assert (made.images == images[0][order].transpose(0, 3, 1, 2)).all()
    assert made.labels.tolist() == [0, 1] * 12 and made.split.tolist() == [1] * 12 + [0] * 12
    with pytest.raises(ValueError, match="no column 'agee'; .* label, age"):
        make(tmp_path / "data", targets="agee")


def test_without_pyarrow_the_error_says_what_to_install(make, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"pip install 'litdiffusion\[data\]', or pip install pyarrow"):
        make(tmp_path / "a.parquet")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, ">u2"])
@pytest.mark.parametrize("bands", [0, 1, 5])
def test_npy_of_any_bands(make, tmp_path, dtype, bands):
    random = np.random.default_rng(0)
    shape = (30, 12, 20) + ((bands,) if bands else ())
    array = random.integers(0, 200, shape) if np.dtype(dtype).kind == "u" else random.normal(5000, 300, shape)
    np.save(tmp_path / "a.npy", array.astype(dtype))
    made = make(tmp_path / "a.npy")
    assert made.facts["shape"] == [bands or 1, 12, 20]
    assert made.facts["dtype"] == {"u1": "uint8", "u2": "uint16"}.get(np.dtype(dtype).str[1:], "float32")
    wanted = array.astype(made.facts["dtype"])
    assert (made.images == (wanted.transpose(0, 3, 1, 2) if bands else wanted[:, None])).all()
    assert made.manifest[7]["file"] == "a.npy#7"


def test_npy_with_labels_in_another_file(make, images, tmp_path):
    np.save(tmp_path / "a.npy", images[0].transpose(0, 3, 1, 2))  # channels first are recognised
    np.save(tmp_path / "y.npy", np.eye(2)[images[1]])  # and rows with a single one
    np.save(tmp_path / "t.npy", np.arange(48.0).reshape(24, 2))
    made = make(tmp_path / "a.npy", label=str(tmp_path / "y.npy"), targets=str(tmp_path / "t.npy"))
    assert (made.images == images[0].transpose(0, 3, 1, 2)).all() and made.labels.tolist() == images[1].tolist()
    assert len(made.facts["targets"]) == 2 and np.load(made.folder / "targets.npy")[3].tolist() == [6, 7]
    np.save(tmp_path / "b.npy", np.zeros((9, 4, 30, 4), np.uint8))
    with pytest.raises(ValueError, match="say --layout NHWC or NCHW"):
        make(tmp_path / "b.npy")


def test_npz_and_hdf5_with_splits(make, images, tmp_path):
    words = {"x_train": images[0][:16], "y_train": images[1][:16], "x_test": images[0][16:], "y_test": images[1][16:]}
    np.savez_compressed(tmp_path / "a.npz", **words)
    sources = [tmp_path / "a.npz"]
    try:
        import h5py
    except ImportError:
        pass
    else:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name, value in words.items():
                file[f"{name.rpartition('_')[2]}/{name[0]}"] = value
        sources.append(tmp_path / "a.h5")
    for source in sources:
        made = make(source)
        assert made.facts["images"] == {"train": 16, "test": 8} and made.facts["classes"] == ["0", "1"]
        whole = np.concatenate([made.images[made.split == 0], made.images[made.split == 1]])
        assert (whole == images[0].transpose(0, 3, 1, 2)).all(), source
    with pytest.raises(ValueError, match="has no array 'q'; it has x_train uint8"):
        make(tmp_path / "a.npz", key="q")


@pytest.mark.parametrize("form", ["npz", "pickle", "python 2"])
def test_imagenet_64_as_its_authors_packed_it(make, tmp_path, form):
    """Batches of (N, 12288) planes and labels 1 .. 1000, in zip archives beside each other."""
    random, folder = np.random.default_rng(0), tmp_path / "imagenet"
    folder.mkdir()
    data = random.integers(0, 256, (12, 12288), np.uint8)
    for k, (archive, name) in enumerate(
        [("train_part1", "train_data_batch_1"), ("train_part2", "train_data_batch_6"), ("val", "val_data")]
    ):
        batch = {"data": data[4 * k : 4 * k + 4], "labels": [5, 900, 5, 7], "mean": data[0].astype(float)}
        file = io.BytesIO()
        if form == "npz":
            np.savez(file, **batch)
        else:
            pickle.dump(batch, file, protocol=2 if form == "python 2" else 4)
        with zipfile.ZipFile(folder / f"Imagenet64_{archive}.zip", "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr(name + (".npz" if form == "npz" else ""), file.getvalue())
    made = make(folder)
    assert (made.images == data.reshape(12, 3, 64, 64)).all()
    assert made.facts["classes"] == ["5", "7", "900"] and made.labels.tolist() == [0, 2, 0, 1] * 3
    assert made.split.tolist() == [0] * 8 + [1] * 4


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(ValueError, match="holds builtins.print; only arrays"):
        load(tmp_path / "data_batch_1")


@pytest.mark.slow
def test_torchvision_by_name(make):
    made = make("torchvision:FakeData", size=32)
    assert made.facts["images"]["train"] + made.facts["images"]["test"] == 1000 and made.facts["shape"] == [3, 32, 32]
    with pytest.raises(ValueError, match="no such data set; it has .*CIFAR10"):
        make("torchvision:CIFAR11")


def test_errors_about_sources(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder; wanted a folder, .zip"):
        make(tmp_path / "no")
    for name in ("a.zip", "a.tar", "a.npy", "a.npz", "a.h5", "data_batch_1"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises((ValueError, ImportError), match=r"damaged|wanted a .npy|is missing"):
            make(tmp_path / name)
    (tmp_path / "a.doc").write_text("a")
    with pytest.raises(ValueError, match="wanted a folder, .zip"):
        make(tmp_path / "a.doc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images found"):
        make(tmp_path / "empty")
