"""Models are offered by name from one folder, and few of them stay open."""

import os
import shutil

import pytest

import diffusion
from diffusion.exchange.serving.shelf import Shelf


def test_names_are_paths_from_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list(Shelf(["runs"]).files()) == [
        "runs/digits/version_0", "runs/sprites/version_0", "runs/digits/version_0/checkpoints/step00000010.ckpt"
    ]  # fmt: skip


def test_names_of_runs_elsewhere_start_at_their_common_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shelf = Shelf([folder / "runs" / "digits", folder / "runs" / "sprites" / "version_0"])
    assert list(shelf.files())[:2] == ["digits/version_0", "sprites/version_0"] and shelf.base == folder / "runs"


def test_links_that_lead_out_are_left_out(folder):
    assert not [name for name in Shelf([folder / "runs"]).files() if "leads_out" in name or "one" in name.split("/")]


def test_a_model_is_opened_once_and_again_when_its_file_changes(folder, tmp_path):
    shutil.copytree(folder / "runs" / "digits", tmp_path / "digits")
    shelf = Shelf([tmp_path / "digits"], "cpu")
    first = shelf.model("digits/version_0")
    assert shelf.model("digits/version_0") is first
    os.utime(tmp_path / "digits/version_0/checkpoints/last.ckpt", (1, 1))
    assert shelf.model("digits/version_0") is not first


def test_the_least_recently_used_model_is_closed(folder):
    shelf = Shelf([folder / "runs"], "cpu", keep=2)
    a, b, c = shelf.files()
    first = shelf.model(a)
    shelf.model(b)
    assert shelf.model(a) is first
    shelf.model(c)
    assert list(shelf.open) == [a, c]


def test_a_missing_run_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint file or run directory"):
        Shelf([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Shelf([tmp_path])


def test_published_and_exported_models_are_offered(tmp_path):
    pytest.importorskip("safetensors")
    diffusion.export("zoo:digits", tmp_path / "more" / "digits.safetensors")
    shelf = Shelf(["zoo:digits", tmp_path / "more"], "cpu")
    assert list(shelf.files()) == ["zoo:digits", "more/digits.safetensors"]
    assert all(shelf.model(name).shape == (1, 8, 8) for name in shelf.files())
    assert list(Shelf(["zoo:digits"], "cpu").files()) == ["zoo:digits"]
