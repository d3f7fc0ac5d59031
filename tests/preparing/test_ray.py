"""`prepare --ray`: two workers of a cluster on this machine give the same bytes; errors, crashes and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import diffusion
from diffusion.preparing.prepare import prepare
from diffusion.preparing.shards import cluster

from .conftest import Made
from .test_hostile import CRASH
from .test_unfinished import SMALL, contents, small_blocks  # noqa: F401

ROOT = Path(diffusion.__file__).parents[1]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A cluster of two workers, which end at an image of the bytes b"crash"."""
    ray = pytest.importorskip("ray", reason="ray is missing: pip install 'litdiffusion[ray]'")
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(CRASH)
    before = os.environ.get("PYTHONPATH")
    os.environ |= {"PYTHONPATH": f"{folder}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_an_address_without_a_cluster_is_one_line(photos, tmp_path):
    pytest.importorskip("ray", reason="ray is missing: pip install 'litdiffusion[ray]'")
    with pytest.raises(OSError, match="^--ray 127.0.0.1:9: no cluster answers; start one, or give local: .*refused"):
        prepare(photos, tmp_path / "out", ray="127.0.0.1:9")


@pytest.mark.slow
def test_the_bytes_are_those_of_a_run_without_ray(two_workers, photos, tmp_path, monkeypatch, small_blocks):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    prepare("photos", "here", name="a", workers=1)
    prepare("photos", "there", name="a", ray="local")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len(Made(tmp_path / "there").facts["shards"]) == 5
    for words in ({"part": "1/2", "ray": "local"}, {"part": "2/2", "workers": 1}, {"merge": True, "ray": "local"}):
        prepare("photos", "parts", name="a", **words)
    assert contents(tmp_path / "parts") == contents(tmp_path / "here")
    assert two_workers.is_initialized()  # the caller's cluster is left


@pytest.mark.slow
def test_an_image_that_ends_its_worker_is_refused(two_workers, photos, tmp_path, monkeypatch, small_blocks):  # noqa: F811
    (photos / "cat/3.png").write_bytes(b"crash")
    monkeypatch.setattr("diffusion.preparing.survey.LOOK", 1)
    made = Made(prepare(photos, tmp_path / "out", max_bad=1, ray="local"))
    assert len(made.rows) == 23 and "ended the process" in made.by_name["cat/3.png"]["reason"]


@pytest.mark.slow
def test_errors_of_a_task_are_those_of_a_run_without_ray(two_workers, photos, tmp_path, monkeypatch, small_blocks):  # noqa: F811
    with pytest.raises(ValueError, match=r"^--ray: .* has other software, litdiffusion .* instead of numpy 0; install"):
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "SOFTWARE", {"numpy": "0"})
            prepare(photos, tmp_path / "other", ray="local")
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "absolute", lambda source: "/nowhere/photos")
        with pytest.raises(OSError, match="^--ray: .* has no /nowhere/photos; source and --out must be in folders"):
            prepare(photos, tmp_path / "other", ray="local")
    for k in range(3):
        (photos / f"cat/bad{k}.png").write_bytes(b"bad")
    said = []
    for words in ({"workers": 1}, {"ray": "local"}):
        with pytest.raises(ValueError, match=r"images were refused, more than .* x no image of a known kind") as error:
            prepare(photos, tmp_path / f"bad{len(said)}", max_bad="1%", **words)
        said.append(str(error.value).partition(" of ")[2])
    assert "\n" not in said[0] + said[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_the_tasks_and_the_run_can_be_continued(tmp_path, picture):
    pytest.importorskip("ray", reason="ray is missing: pip install 'litdiffusion[ray]'")
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(64 * 100):
        Image.fromarray(picture(i, 40, 48)).save(folder / f"{i}.png")

    def start(out, *more):
        words = ["prepare", str(folder), "--out", str(out), "--size", "16", "--workers", "2", "--name", "a", *more]
        return subprocess.Popen([sys.executable, "-c", SMALL, *words], cwd=ROOT, stdout=-1, stderr=-2, text=True)

    process = start(tmp_path / "out", "--ray", "local")
    blocks = tmp_path / "out/.work/blocks"
    while process.poll() is None and not list(blocks.glob("*.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 130 and "interrupted; the same command continues" in said, said
    done = len(list(blocks.glob("*.jsonl")))
    time.sleep(2)
    assert len(list(blocks.glob("*.jsonl"))) == done < 100  # nothing works on
    assert start(tmp_path / "out", "--ray", "local").communicate()[0].count("Traceback") == 0
    assert start(tmp_path / "whole").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_block_that_is_not_in_the_shared_folder_is_found(tmp_path):
    with pytest.raises(OSError, match="--ray: --out .* is not shared: a node made a block that is not in it here"):
        cluster.check_seen(tmp_path, 3)


def test_without_ray_the_error_says_what_to_install(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'litdiffusion\[ray\]', or pip install ray"):
        prepare(photos, tmp_path / "out", ray="local")
