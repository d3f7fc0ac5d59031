"""The prepared folder: its files, split, duplicates, parts, statistics; unfinished and finished folders."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffusion
from diffusion.cli import main
from diffusion.preparing import blocks
from diffusion.preparing import prepare as module
from diffusion.preparing.prepare import prepare


def contents(folder):
    """Every file of a folder with the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 5 items, so that a small folder has several."""
    for name in ("prepare", "gather"):
        monkeypatch.setattr(f"diffusion.preparing.{name}.BLOCK", 5)


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


def test_any_number_of_processes_gives_the_same_bytes(make, photos, small_blocks):
    one = make(photos, workers=1)
    two = make(photos, workers=2, name=one.facts["name"])
    assert len(one.facts["shards"]) == 5 and contents(one.folder).keys() == contents(two.folder).keys()
    a, b = contents(one.folder), contents(two.folder)
    assert {k for k in a if a[k] != b[k]} <= {"dataset.json", "report.html"}  # which have the folder's name


def test_parts_and_their_merge_equal_one_run(photos, tmp_path, small_blocks):
    prepare(photos, tmp_path / "whole", name="a", workers=1)
    out = tmp_path / "parts"
    for k in (3, 1):
        prepare(photos, out, name="a", workers=1, part=f"{k}/3")
    with pytest.raises(ValueError, match="--merge: 2 of 5 blocks are missing, e.g. 1; run all parts"):
        prepare(photos, out, name="a", workers=1, merge=True)
    assert not (out / "dataset.json").exists()
    prepare(photos, out, name="a", workers=1, part="2/3")
    prepare(photos, out, name="a", workers=1, merge=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_kill_between_any_two_blocks_changes_nothing(photos, tmp_path, small_blocks, monkeypatch):
    prepare(photos, tmp_path / "whole", name="a", workers=1)
    out, make_block = tmp_path / "killed", blocks.make
    for after in (0, 1, 2, 1, 0):
        left = iter(range(after))

        def until(*words, left=left):
            if next(left, None) is None:
                raise SystemExit
            return make_block(*words)

        monkeypatch.setattr("diffusion.preparing.crew.make", until)
        with pytest.raises(SystemExit):
            prepare(photos, out, name="a", workers=1)
        (out / "shards").mkdir(exist_ok=True)
        (out / "shards/.000003.tmp-left.npy").write_bytes(b"torn")
    monkeypatch.setattr("diffusion.preparing.crew.make", make_block)
    prepare(photos, out, name="a", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes(tmp_path, picture):
    """SIGKILL after a random time, again and again, with two workers; then to the end."""
    folder = tmp_path / "many"
    for i in range(4000):
        path = folder / str(i % 3) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, 40, 48)).save(path)
    root = Path(diffusion.__file__).parents[1]

    def start(out):
        words = ["prepare", str(folder), "--out", str(out), "--size", "16", "--workers", "2", "--name", "a"]
        return subprocess.Popen([sys.executable, "-m", "diffusion", *words], cwd=root, stdout=-3, stderr=-3)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took, kills = time.monotonic() - began, 0
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    while kills < 10:
        process = start(tmp_path / "killed")
        time.sleep(float(random.uniform(0.3, 0.9)) * took)
        if process.poll() is not None:
            assert process.returncode == 0
            if kills >= 3:
                break
            shutil.rmtree(tmp_path / "killed")
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    process = start(tmp_path / "killed")
    assert process.wait() == 0 and kills >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_workers_end_with_their_parent(tmp_path, photos):
    """A parent that is killed leaves no process behind."""
    code = f"""
import multiprocessing, os, signal, time, diffusion
from diffusion.preparing import crew
def killed(flying, **words):
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
crew.wait = killed
diffusion.prepare({str(photos)!r}, {str(tmp_path / "o")!r}, workers=2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = [int(p) for p in done.stdout.split()]
    deadline = time.monotonic() + 20
    while any(alive(p) for p in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pids and not any(alive(p) for p in pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_script_needs_no_guard(tmp_path, photos):
    """Worker processes do not run the user's script again."""
    (tmp_path / "script.py").write_text(
        f"import diffusion\nprint('once')\ndiffusion.prepare({str(photos)!r}, {str(tmp_path / 'o')!r}, workers=2)\n"
    )
    root = Path(diffusion.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.count("once") == 1, done.stderr
    assert (tmp_path / "o/dataset.json").exists()


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


def test_a_finished_folder_is_left_alone(photos, tmp_path):
    told = []
    prepare(photos, tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    prepare(photos, tmp_path / "out", told.append, workers=1)
    assert contents(tmp_path / "out") == before and "prepared already" in told[0]
    with pytest.raises(ValueError, match="prepared already, with size None instead of .*; choose another place"):
        prepare(photos, tmp_path / "out", size=16)
    (tmp_path / "out/dataset.json").write_text("{")
    with pytest.raises(ValueError, match="damaged; delete the folder"):
        prepare(photos, tmp_path / "out")


def test_an_unfinished_folder_is_continued_in_the_same_way_only(photos, tmp_path, small_blocks):
    out = tmp_path / "out"
    prepare(photos, out, workers=1, part="1/3")
    with pytest.raises(ValueError, match="begun with crop center; delete it to start anew"):
        prepare(photos, out, workers=1, crop="pad")
    (photos / "cat/5.png").unlink()
    with pytest.raises(ValueError, match="from a source that has changed since"):
        prepare(photos, out, workers=1)


def test_two_processes_do_not_prepare_one_folder(photos, tmp_path):
    from diffusion.support.lock import Lock

    (tmp_path / "out/.work").mkdir(parents=True)
    code = "import sys, time; from pathlib import Path; from diffusion.support.lock import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out/.work")], stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another process is preparing it"):
            prepare(photos, tmp_path / "out")
    finally:
        other.kill()
        other.wait()
    Lock(tmp_path / "out/.work").release()


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
