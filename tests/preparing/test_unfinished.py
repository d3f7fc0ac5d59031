"""Unfinished folders: kills, parts, any number of processes give the same bytes; finished ones are left alone."""

import hashlib
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
from diffusion.preparing.prepare import prepare
from diffusion.preparing.shards import blocks
from diffusion.support.lock import Lock


def contents(folder):
    """Every file of a folder with the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 5 items, so that a small folder has several."""
    for name in ("prepare", "shards.gather"):
        monkeypatch.setattr(f"diffusion.preparing.{name}.BLOCK", 5)


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

        monkeypatch.setattr("diffusion.preparing.shards.crew.make", until)
        with pytest.raises(SystemExit):
            prepare(photos, out, name="a", workers=1)
        (out / "shards").mkdir(exist_ok=True)
        (out / "shards/.000003.tmp-left.npy").write_bytes(b"torn")
    monkeypatch.setattr("diffusion.preparing.shards.crew.make", make_block)
    prepare(photos, out, name="a", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


SMALL = """
import sys
import diffusion.preparing.prepare, diffusion.preparing.shards.gather
from diffusion.cli import main
for name in ("prepare", "shards.gather"):
    sys.modules[f"diffusion.preparing.{name}"].BLOCK = 64
sys.exit(main(sys.argv[1:]))
"""  # the command with small blocks, so that a small folder has many


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes(tmp_path, picture):
    """SIGKILL at a random moment after a random number of the 63 blocks, ten times, with two workers; then to the end.

    The moments follow the blocks and not a clock, so that a kill hits the work however fast the machine is.
    """
    folder = tmp_path / "many"
    for i in range(4000):
        path = folder / str(i % 3) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, 40, 48)).save(path)
    root = Path(diffusion.__file__).parents[1]

    def start(out):
        words = ["prepare", str(folder), "--out", str(out), "--size", "16", "--workers", "2", "--name", "a"]
        return subprocess.Popen([sys.executable, "-c", SMALL, *words], cwd=root, stdout=-3, stderr=-3)

    assert start(tmp_path / "whole").wait() == 0
    whole, kills = contents(tmp_path / "whole"), 0
    assert sum(name.startswith("shards/") for name in whole) == 63
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    blocks = tmp_path / "killed/.work/blocks"
    while kills < 10:
        process = start(tmp_path / "killed")
        wanted = len(list(blocks.glob("*.jsonl"))) + random.integers(1, 6)
        while process.poll() is None and len(list(blocks.glob("*.jsonl"))) < wanted:
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.1)))  # within a block
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0 and contents(tmp_path / "killed") == whole  # it was done before the kill
        shutil.rmtree(tmp_path / "killed")
    assert start(tmp_path / "killed").wait() == 0
    assert contents(tmp_path / "killed") == whole


def test_workers_end_with_their_parent(tmp_path, photos):
    """A parent that is killed leaves no process behind."""
    code = f"""
import multiprocessing, os, signal, time, diffusion
from diffusion.preparing.shards import crew
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
    deadline = time.monotonic() + 600
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
    (tmp_path / "out/.work").mkdir(parents=True)
    code = "import sys, time; from pathlib import Path; from diffusion.support.lock import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(3600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out/.work")], stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another process is preparing it"):
            prepare(photos, tmp_path / "out")
    finally:
        other.kill()
        other.wait()
    Lock(tmp_path / "out/.work").release()
