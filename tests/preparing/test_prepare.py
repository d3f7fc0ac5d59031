"""The prepared folder: its files, split, duplicates, parts, statistics; unfinished and finished folders."""

import dataclasses
import hashlib
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.cli import main
from diffusion.preparing import prepare as module
from diffusion.preparing.prepare import prepare
from diffusion.preparing.settings import Settings


def test_the_files_are_as_documented(make, photos):
    made = make(photos)
    assert sorted(p.name for p in made.folder.iterdir()) == [
        "contact.png", "dataset.json", "labels.npy", "manifest.jsonl", "report.html", "rows.npy", "shards", "split.npy",
    ]  # fmt: skip
    facts = made.facts
    assert facts["format"] == 1 and facts["dtype"] == "uint8" and facts["captions"] is False and facts["targets"] == []
    assert made.rows.dtype == made.labels.dtype == np.int64 and made.split.dtype == np.uint8
    shard = facts["shards"][0]
    assert hashlib.sha256((made.folder / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    assert np.load(made.folder / shard["file"]).flags.c_contiguous and shard["images"] == 24
    source = (photos / "cat/3.png").read_bytes()
    line = made.by_name["cat/3.png"]
    assert line["sha256"] == hashlib.sha256(source).hexdigest() and line["bytes"] == len(source)
    assert (line["width"], line["height"], line["mode"], line["row"]) == (24, 24, "RGB", 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_statistics_are_those_of_the_train_split(make, tmp_path, dtype):
    random = np.random.default_rng(0)
    values = (
        random.normal([5000, -20, 0.001], [10, 3, 0.1], (50, 9, 11, 3))
        if dtype == "float32"
        else random.integers(0, np.iinfo(dtype).max, (50, 9, 11, 3))
    )
    np.save(tmp_path / "a.npy", values.astype(dtype))
    made = make(tmp_path / "a.npy", test=0.3)
    train = made.images[made.split == 0].astype(np.float64)
    for name, value in (("mean", train.mean((0, 2, 3))), ("std", train.std((0, 2, 3))),
                        ("low", train.min((0, 2, 3))), ("high", train.max((0, 2, 3)))):  # fmt: skip
        assert np.allclose(made.facts["statistics"][name], value, rtol=1e-12, atol=1e-12), name


def test_copies_stay_on_one_side_and_can_be_left_out(make, tmp_path, picture):
    folder = tmp_path / "twins"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(60):
        image = picture(i, 32, 32)
        Image.fromarray(image).save(folder / f"{i}.png")
        if i % 3 == 0:
            Image.fromarray(image).save(folder / f"{i + 100}.bmp")  # other bytes, the same picture
        if i % 4 == 0:
            noise = np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{i + 200}.png")
    kept = make(folder, test=0.4)
    side = {line["file"]: line["split"] for line in kept.manifest}
    assert all(side[f"{i}.png"] == side[f"{i + 100}.bmp"] for i in range(0, 60, 3))
    assert all(side[f"{i}.png"] == side[f"{i + 200}.png"] for i in range(0, 60, 4))
    assert kept.by_name["103.bmp"]["of"] == "3.png" and kept.by_name["103.bmp"]["likeness"] == "exact"
    assert kept.by_name["204.png"]["of"] == "4.png" and kept.by_name["204.png"]["likeness"] == "near"
    exact, drop = make(folder, duplicates="exact"), make(folder, duplicates="drop")
    assert (len(kept.rows), len(exact.rows), len(drop.rows)) == (95, 75, 60)
    line = drop.by_name["204.png"]
    assert line["decision"] == "duplicate" and line["reason"] == "nearly the same picture" and line["of"] == "4.png"
    assert line["row"] not in drop.rows.tolist() and len(drop.stored) == 95


def test_the_split_is_by_the_picture_and_not_by_its_name(make, photos, tmp_path):
    first = make(photos, test=0.3)
    sides = {line["sha256"]: line["split"] for line in first.manifest}
    assert 2 <= sum(sides.values()) <= 14
    for k, file in enumerate(sorted(photos.rglob("*.png"))[::-1]):
        file.rename(photos / f"{k}.png")
    shutil.rmtree(photos / "cat")
    assert {line["sha256"]: line["split"] for line in make(photos, test=0.3).manifest} == sides
    number = int.from_bytes(hashlib.sha256(first.images[0].tobytes()).digest()[:8], "big") / 2**64
    assert (number < 0.3) == first.split[0]
    assert make(photos, test=0.001).facts["images"] == {"train": 23, "test": 1}  # never an empty split
    assert make(photos, test=0).facts["images"]["test"] == 0


def test_places_that_are_refused(photos, tmp_path, monkeypatch):
    for out, words in (
        (photos / "out", "lies in the source"), (photos, "lies in the source"), (tmp_path, "the source lies in it"),
        (photos / "cat/1.png", "lies in the source"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            prepare(photos, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        prepare(photos, tmp_path / "full")
    with pytest.raises(ValueError, match="is a file"):
        prepare(photos, tmp_path / "full/thesis.tex")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 2**20))
    with pytest.raises(OSError, match="GiB are needed and 0.00 GiB are free"):
        prepare(photos, tmp_path / "out")


@pytest.mark.parametrize("words, said", [
    (["--size", "0"], "wanted one number for a square or HEIGHTxWIDTH"),
    (["--size", "64x"], "got 64x"),
    (["--test", "1"], "a fraction in [0, 1)"),
    (["--max-bad", "x"], "wanted a fraction, e.g. 0.01 or 1%"),
    (["--channels", "2"], "1 (grey), 3 (RGB) or 4 (RGBA)"),
    (["--background", "whitish"], "wanted a colour"),
    (["--part", "4/3"], "wanted K/N with K in 1 .. N"),
    (["--part", "1/3", "--merge"], "without --part"),
    (["--label", "kind"], "no column 'kind'"),
    (["--caption", "words"], "no column 'words'"),
    (["--targets", "age"], "no column 'age'"),
    (["--sizze", "3"], "did you mean"),
    (["--workers", "-1"], "wanted a number of processes"),
])  # fmt: skip
def test_wrong_words_are_one_line(words, said, photos, tmp_path, capsys):
    assert main(["prepare", str(photos), "--out", str(tmp_path / "out"), *words]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("diffusion prepare: error: ") and "\n" not in line and said in line, line


def test_mixed_sizes_need_a_size(make, photos, picture):
    Image.fromarray(picture(9, 30, 40)).save(photos / "cat/99.png")
    with pytest.raises(ValueError, match="2 sizes, from 24x24 to 30x40 .*choose one, e.g. --size 64"):
        make(photos)


def test_the_command_line_says_what_comes_next(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "photos", "--out", "data/my photos", "--size", "16", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "fit --data 'data/my photos'" in said and "evaluate" in said and "advice: " in said
    assert "cat" in said and "3 x 16 x 16 uint8" in said
    facts = json.loads(Path("data/my photos/dataset.json").read_text())
    assert facts["name"] == "my photos" and facts["settings"]["size"] == [16, 16]


def test_python_and_the_command_line_have_the_same_options_and_defaults():
    plain = inspect.signature(prepare).parameters
    known = {f.name: f.default for f in dataclasses.fields(Settings)}
    assert set(plain) - {"tell"} == set(known)
    assert {n: p.default for n, p in plain.items() if n not in ("tell", "source", "out")} == {
        n: v for n, v in known.items() if n not in ("source", "out")
    }
