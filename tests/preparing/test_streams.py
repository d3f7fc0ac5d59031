"""Folders of MDS and litdata, written by the packages themselves (written/write.py): read, damaged and hostile."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WRITTEN = Path(__file__).parent / "written"
COUNT = 8


def image(seed):
    """The picture that write.py stores under a number."""
    return np.add.outer(np.arange(8) * 9 + 20 * seed, np.arange(24) * 5).astype(np.uint8).reshape(8, 8, 3)


IMAGES = np.stack([image(k) for k in range(COUNT)]).transpose(0, 3, 1, 2)


@pytest.fixture
def folder(tmp_path):
    """A function that copies what was written, so that it can be changed."""

    def copy(name):
        return Path(shutil.copytree(WRITTEN / name, tmp_path / "source" / name))

    return copy


def change(folder, **words):
    """Change entries of the first shard or chunk of an index, dotted words those below."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    for word, value in words.items():
        at = (index.get("shards") or index.get("chunks"))[0]
        *way, last = word.split("__")
        for key in way:
            at = at[key]
        at[last] = value
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", [
    "png", "pil", "bytes", "ndarray0", "ndarray1", "ndarray2", "gz", "bz2", "zstd",
    "lit-bytes", "lit-pil", "lit-numpy", "lit-tensor", "lit-zstd-chunk", "lit-nested",
])  # fmt: skip
def test_every_image_is_read_to_the_byte(name, make):
    if "zstd" in name:
        pytest.importorskip("pyarrow")
    words = {"layout": "NCHW" if name == "lit-tensor" else "NHWC", "key": {"lit-nested": "a.image"}.get(name, "")}
    made = make(WRITTEN / name, **words)
    assert (made.images == IMAGES).all() and made.facts["shape"] == [3, 8, 8]
    assert len(made.manifest) == COUNT, "the rest of the folder is index.json and its shards"


@pytest.mark.parametrize("name", ["jpeg", "lit-jpeg"])
def test_jpegs_are_stored_as_they_were(name, make):
    made = make(WRITTEN / name)
    for k in range(COUNT):
        picture = Image.fromarray(image(k))
        for _ in range(2 if name == "lit-jpeg" else 1):  # litdata encodes a picture without a file again
            file = io.BytesIO()
            picture.save(file, "JPEG")
            picture = Image.open(file)
        assert (made.images[k] == np.asarray(picture).transpose(2, 0, 1)).all()
    assert made.facts["classes"] == ["0", "1"] and made.labels.tolist() == [0, 1] * 4


@pytest.mark.parametrize("name", ["png", "lit-bytes"])
def test_labels_captions_and_numbers(name, make):
    made = make(WRITTEN / name, targets="age")
    assert made.facts["classes"] == ["0", "1", "2"] and made.labels.tolist() == [k % 3 for k in range(COUNT)]
    assert made.captions == [f"number {k} é" for k in range(COUNT)]
    assert np.load(made.folder / "targets.npy")[:, 0].tolist() == [k / 4 for k in range(COUNT)]
    assert made.manifest[6]["file"] == ("shard.00001.mds#1" if name == "png" else "chunk-0-1.bin#1")
    plain = make(WRITTEN / name, label="none", caption="none")
    assert plain.facts["classes"] == [] and not plain.facts["captions"]
    chosen = make(WRITTEN / name, label="caption", caption="none")
    assert len(chosen.facts["classes"]) == COUNT


def test_usual_columns_and_tuples(make):
    assert make(WRITTEN / "pil").facts["classes"] == ["a", "b"]  # cls
    assert make(WRITTEN / "bytes").labels.tolist() == [0, 1] * 4  # y
    assert make(WRITTEN / "lit-pil").facts["classes"] == []  # a tuple has no names
    assert make(WRITTEN / "lit-pil", label="1").facts["classes"] == ["a", "b"]
    made = make(WRITTEN / "lit-nested", key="a.image", layout="NHWC", caption="a.text", label="a.text")
    assert made.captions == ["a", "b"] * 4 and made.labels.tolist() == [0, 1] * 4


def test_folders_of_a_split_with_and_without_a_common_index(make, folder, tmp_path):
    source = folder("png").parent
    (source / "png").rename(source / "train")
    folder("png").rename(source / "val")
    apart = make(source, label="none")
    assert apart.facts["images"] == {"train": 8, "test": 8}
    index = {"version": 2, "shards": []}
    for part in ("train", "val"):
        for shard in json.loads((source / part / "index.json").read_text())["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            index["shards"].append(shard)
    (source / "index.json").write_text(json.dumps(index))
    merged = make(source, label="none")
    assert (merged.images == apart.images).all() and (merged.split == apart.split).all()
    assert merged.manifest[-1]["file"] == "val/shard.00001.mds#2"


def test_files_that_the_index_does_not_name_are_in_the_manifest(make, folder):
    source = folder("png")
    Image.fromarray(image(0)).save(source / "stray.png")
    for folder in ("pages", ".cache"):
        (source / folder).mkdir()
        (source / folder / "index.json").write_text('{"shards": []}' if folder == ".cache" else "{}")
    made = make(source)
    assert made.by_name["pages/index.json"]["reason"] == made.by_name[".cache/index.json"]["reason"]
    assert len(made.rows) == COUNT and made.by_name["stray.png"]["reason"] == "not named in index.json"


def test_an_index_of_something_else_is_an_ordinary_file(make, photos):
    (photos / "index.json").write_text('{"pages": []}')
    assert len(make(photos).rows) == 24


def damaged(path, at, value):
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("name, harm, reason", [
    ("png", lambda f: (f / "shard.00000.mds").unlink(), "shard.00000.mds is missing, its index names it"),
    ("png", lambda f: (f / "shard.00000.mds").write_bytes(b"1234"), "has 4 bytes, its index says 817; copy it again"),
    ("png", lambda f: damaged(f / "shard.00000.mds", 700, b"?"), "does not have the sha1 that its index names"),
    ("pil", lambda f: damaged(f / "shard.00000.mds", 0, b"\2"), "holds 2 samples, its index says 3"),
    ("pil", lambda f: damaged(f / "shard.00000.mds", 8, b"\xff\xff\xff\xff"), "offsets do not lead from sample to"),
    ("pil", lambda f: change(f, column_names=["cls", "z"]), "has no column 'x', the others have"),
    ("pil", lambda f: change(f, column_names=["kind", "x"]), "has no column 'cls', the others have"),
    ("pil", lambda f: change(f, column_sizes=[1, 7]), "damaged: sample of "),
    ("ndarray0", lambda f: change(f, column_encodings=["ndarray:uint8:9,9,3", "int64"]), "damaged: cannot reshape"),
    ("ndarray0", lambda f: change(f, column_encodings=["ndarray:object:2", "int64"]), "damaged: "),
    ("gz", lambda f: damaged(f / "shard.00000.mds.gz", 100, b"????"), "cannot be unpacked: "),
    ("gz", lambda f: (f / "shard.00000.mds.gz").write_bytes(b""), "has 0 bytes, its index says"),
    ("lit-bytes", lambda f: (f / "chunk-0-0.bin").unlink(), "chunk-0-0.bin is missing, its index names it"),
    ("lit-bytes", lambda f: damaged(f / "chunk-0-0.bin", 0, b"\1"), "holds 1 samples, its index says 5"),
    ("lit-numpy", lambda f: damaged(f / "chunk-0-0.bin", 36, b"\x63"), "damaged: "),
    ("lit-bytes", lambda f: damaged(f / "chunk-0-0.bin", 1542, b"\0"), "chunk-0-0.bin is damaged: "),
    ("lit-bytes", lambda f: (f / "chunk-0-0.bin").write_bytes((f / "chunk-0-0.bin").read_bytes()[:-9]), "offsets do"),
    ("lit-bytes", lambda f: (f / "chunk-0-0.bin").write_bytes(b""), "holds 0 samples, its index says 5"),
])  # fmt: skip
def test_damaged_shards_are_refused_sample_by_sample(name, harm, reason, make, folder):
    """The rest is used, and each sample of the damaged shard has its reason in the manifest."""
    source = folder(name)
    harm(source)
    made = make(source, layout="NHWC", max_bad="100%")
    assert len(made.manifest) == COUNT
    bad = [line for line in made.manifest if line["decision"] == "refused"]
    assert bad and all(reason in line["reason"] for line in bad), {line["reason"] for line in bad}
    kept = [k for k, line in enumerate(made.manifest) if line["decision"] == "kept"]
    assert len(kept) == len(made.rows) >= 2 and (made.images == IMAGES[kept]).all()


def test_a_damaged_shard_stops_the_run_as_other_bad_images_do(make, folder):
    source = folder("png")
    (source / "shard.00001.mds").unlink()
    with pytest.raises(ValueError, match="3 of 8 images were refused, .*: 3 x shard.00001.mds is missing"):
        make(source, max_bad="1%")


@pytest.mark.parametrize("name, harm, said", [
    ("png", lambda f: change(f, raw_data__basename="../secret.mds"), "index of MDS: names '../secret.mds', which lies"),
    ("png", lambda f: change(f, raw_data__basename="/etc/passwd"), "names '/etc/passwd', which lies outside"),
    ("png", lambda f: change(f, raw_data__basename="a/../../b.mds"), "which lies outside of its folder"),
    ("png", lambda f: change(f, format="json"), "wanted shards of format mds and version 2, got json"),
    ("png", lambda f: change(f, samples=10**12), "shard.00000.mds has 1000000000000 samples in at most 817 bytes"),
    ("png", lambda f: change(f, samples=-1), "has -1 samples"),
    ("png", lambda f: change(f, column_sizes=[4]), "index of MDS: zip()"),
    ("png", lambda f: change(f, raw_data={}), "index of MDS: KeyError 'basename'"),
    ("png", lambda f: change(f, raw_data=None), "index of MDS: AttributeError"),
    ("pil", lambda f: change(f, column_encodings=["str", "pkl"]), "wanted one column of images; choose one with --key"),
    ("png", lambda f: (f / "index.json").write_bytes(b'{"shards": ['), "index.json: a damaged index: Expecting value"),
    ("png", lambda f: (f / "index.json").write_bytes(b"[" * 100_000), "index.json: a damaged index"),
    ("png", lambda f: (f / "index.json").unlink(), "shards without their index.json, e.g. shard.00000.mds"),
    ("png", lambda f: (f / "index.json").write_text('{"shards": []}'), "its index.json names no samples"),
    ("gz", lambda f: change(f, compression="br"), "compressed with br; wanted zstd, gz, bz2 or none"),
    ("lit-bytes", lambda f: change(f, filename="../x.bin"), "names '../x.bin', which lies outside"),
    ("lit-bytes", lambda f: change(f, chunk_size=10**12), "has 1000000000000 samples in at most 4294967296"),
    ("lit-bytes", lambda f: change(f, filename=3), "chunk-0-1"),
    ("lit-zstd-batch", lambda f: None, "compressed inside its chunks; write it with compression_level='chunk'"),
])  # fmt: skip
def test_a_wrong_index_is_one_line(name, harm, said, make, folder):
    source = folder(name)
    harm(source)
    if said == "chunk-0-1":
        made = make(source)
        assert len(made.manifest) == COUNT + 1  # chunk-0-0.bin is not named: in the manifest
        return
    with pytest.raises(ValueError) as error:
        make(source)
    assert said in str(error.value) and "\n" not in str(error.value), error.value


def test_columns_that_are_not_there(make, folder):
    with pytest.raises(ValueError, match="wanted one column of images named photo; choose one with --key: cls str, x"):
        make(WRITTEN / "pil", key="photo")
    with pytest.raises(ValueError, match="--label: no column 'kind'; the source has cls"):
        make(WRITTEN / "pil", label="kind")
    with pytest.raises(ValueError, match="--targets: no column 'cls' of numbers; the source has none"):
        make(WRITTEN / "pil", targets="cls")
    with pytest.raises(ValueError, match="wanted one column of images; choose one with --key: a.image numpy"):
        source = folder("lit-nested")
        text = (source / "index.json").read_text().replace('"numpy", "str"', '"numpy", "bytes"')
        (source / "index.json").write_text(text)
        make(source)


def test_a_palette_that_was_not_stored_is_refused(make, folder):
    source = folder("pil")
    shard = source / "shard.00001.mds"
    shard.write_bytes(shard.read_bytes().replace(b"\x03\0\0\0RGB", b"\x01\0\0\0PGB"))
    made = make(source)
    assert len(made.rows) == 5
    assert all("palette image without its palette" in line["reason"] for line in made.manifest[3:6])


def test_zstd_without_pyarrow_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'litdiffusion\[data\]', or pip install pyarrow"):
        make(WRITTEN / "zstd", layout="NHWC")
