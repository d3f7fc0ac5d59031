"""`--data FOLDER`: the options of `diffusion fit` that suit a prepared folder."""

import json

import numpy as np
import pytest
import torch
import yaml

from diffusion import nets
from diffusion.cli import main
from diffusion.training.build import DiffusionCLI
from diffusion.training.suited import halvings, settings, suited
from tests import prepared
from tests.served import served


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared folder of 64 images, 3x16x24, in two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    images = np.random.RandomState(0).randint(0, 256, (64, 3, 16, 24), np.uint8)
    prepared.write(folder, images, classes=("cat", "dog"), labels=np.arange(64) % 2)
    return folder


def test_words_without_a_prepared_folder_are_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Digits").mkdir()  # a folder with the name of a class
    for argv in ([], ["-c", "a.yaml"], ["--data", "Digits"], ["--data=my.Set"], ["--data.limit", "3"], ["--data"]):
        assert suited(argv) == argv


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_given_options_override_the_chosen_ones(photos, form):
    data = ["--data", str(photos)] if form == "two words" else [f"--data={photos}"]
    config = DiffusionCLI(suited([*data, "--model.lr", "0.5", "--experiment", "mine"])).config
    assert (config.model.lr, config.experiment) == (0.5, "mine")
    assert config.data.class_path == "diffusion.data.prepared.Prepared" or config.data.class_path.endswith("Prepared")
    assert config.data.init_args.folder == str(photos)


def test_a_configuration_file_replaces_the_chosen_options(photos, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: {class_path: Digits}\nmodel: {lr: 0.25}\n")
    words = suited(["--data", str(photos), "-c", str(file)])
    assert words == ["--experiment=photos", "-c", str(file), "--data=Prepared", f"--data.folder={photos}"]
    assert DiffusionCLI(words).config.model.lr == 0.25


def test_an_address_takes_the_place_of_a_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    with served(photos.parent) as server:
        here, there = suited(["--data", str(photos)]), suited([f"--data={server.url}/photos/"])
        assert there == [word.replace(str(photos), f"{server.url}/photos") for word in here]
        config = DiffusionCLI([*there, "--data.window", "3"]).config
        assert (config.data.init_args.folder, config.data.init_args.window) == (f"{server.url}/photos", 3)
        with pytest.raises(FileNotFoundError, match="/raw/dataset.json: no such file"):
            suited(["--data", f"{server.url}/raw"])


def test_a_class_with_many_arguments_is_no_folder():
    """Longer than the 255 bytes of a file name."""
    words = ["--data", json.dumps({"class_path": "Sprites", "init_args": {"root": "x" * 300}})]
    assert suited(words) == words


def test_a_folder_that_is_not_prepared_is_refused(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(ValueError, match=r"without dataset.json; prepare its images first: diffusion prepare .*/raw "):
        suited(["--data", str(tmp_path / "raw")])


@pytest.mark.parametrize(("sides", "levels"), [
    ((8, 8), 2), ((32, 32), 4), ((28, 28), 3), ((64, 96), 5), ((50, 50), 2), ((33, 64), 1), ((48, 80), 4),
])  # fmt: skip
def test_levels_of_a_unet(sides, levels):
    """Each halving divides both sides and leaves at least 4 pixels."""
    assert halvings(*sides) == levels


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("sides", [(8, 8), (16, 16), (28, 28), (32, 32), (50, 50), (33, 47), (48, 80), (201, 333)])
@pytest.mark.parametrize("classes", [(), ("a", "b", "c")])
def test_chosen_networks_take_images_of_the_size(channels, sides, classes):
    facts = {"shape": [channels, *sides], "images": {"train": 1000, "test": 10}, "classes": list(classes)}
    chosen = settings(facts)
    kind = getattr(nets, chosen["model.net"])
    options = {k.removeprefix("model.net."): v for k, v in chosen.items() if k.startswith("model.net.")}
    options |= {"channels": channels, "num_classes": len(classes)}
    with torch.device("meta"):
        model = kind(**options)
        x = torch.zeros(2, channels, *sides)
        y = torch.zeros(2, dtype=torch.long) if classes else None
        assert model(x, torch.zeros(2), y).shape == x.shape
    assert ("model.guidance" in chosen) == bool(classes)
    longest = [max(sides) / 2**level for level in chosen.get("model.net.attention", [])]
    assert all(side <= 32 for side in longest)  # attention at 333 pixels would need terabytes


@pytest.mark.parametrize(("images", "epochs"), [(100, 1000), (40_000, 100), (10_000_000, 10)])
def test_epochs_by_the_number_of_images(images, epochs):
    facts = {"shape": [3, 32, 32], "images": {"train": images, "test": 10}, "classes": []}
    assert settings(facts)["trainer.max_epochs"] == epochs


def test_fit_and_evaluation_of_a_prepared_folder(photos, tmp_path, capsys):
    """The run has the folder's name, and its configuration suffices to open its data."""
    argv = ["fit", "--data", str(photos), "--out", str(tmp_path), "--trainer.max_epochs", "1", "--model.net.width", "4",
            "--model.net.attention", "[]", "--model.sampler.steps", "2", "--samples.n", "4", "--gif.n", "1",
            "--trainer.accelerator", "cpu"]  # fmt: skip
    assert main(argv) == 0
    run = tmp_path / "photos" / "version_0"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["folder"] == str(photos)
    assert main(["validate", str(tmp_path / "photos")]) == 0
    assert "val/loss" in capsys.readouterr().out
