"""`prepare --clusters`: clusters of the training images as classes, in a folder as in any other."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.cli import main
from diffusion.data import Prepared
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.features import FeatureNet
from diffusion.preparing import clusters as module
from diffusion.preparing.prepare import prepare

COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250))


@pytest.fixture
def coloured(tmp_path):
    """A flat folder of 60 noisy pictures of 20x20 in three colours, 30, 20 and 10 of each, named by their colour."""
    random, folder = np.random.default_rng(0), tmp_path / "coloured"
    folder.mkdir()
    for i in range(60):
        k = 0 if i % 2 else 1 if i % 3 else 2
        picture = np.clip(random.normal(COLOURS[k], 8, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}-{k}.png")
    return folder


def colours(made):
    """The colour of each image in use, by its file's name."""
    names = {line["row"]: line["file"] for line in made.manifest if line["decision"] == "kept"}
    return np.array([int(names[row].rpartition(".")[0].rpartition("-")[2]) for row in made.rows.tolist()])


def test_clusters_are_the_classes_of_both_splits(make, coloured):
    made = make(coloured, clusters=3, test=0.3)
    assert made.facts["classes"] == ["cluster 0", "cluster 1", "cluster 2"] and made.facts["clusters"] == 3
    y = colours(made)
    assert set(zip(made.labels.tolist(), y.tolist(), strict=True)) == {(0, 0), (1, 1), (2, 2)}  # the largest first
    assert set(made.split.tolist()) == {0, 1} and made.labels.dtype == np.int64
    assert [line["cluster"] for line in made.manifest] == made.labels.tolist()
    page = (made.folder / "report.html").read_text()
    assert "<h2>clusters</h2>" in page and "cluster 2" in page


def test_a_model_is_conditioned_on_clusters_and_a_judge_is_not(make, coloured):
    data = Prepared(str(make(coloured, clusters=3).folder), batch_size=8)
    assert (data.num_classes, data.conditions, data.labelled) == (3, "clusters", False)
    assert torch.equal(data.arrays("train")[1].unique(), torch.arange(3))
    extractor = Extractor(FeatureNet(3, 0), "FeatureNet", data.shape, (), "0")
    evaluator = Evaluator(extractor, "Prepared", data.arrays("train"), data.arrays("test"), labelled=data.labelled)
    train = data.arrays("train")[1]
    assert torch.equal(evaluator.labels(len(train)).bincount(), train.bincount())  # samples are requested by cluster
    assert evaluator.reference.test.labels is None and evaluator.classes(train) is None
    assert Prepared(str(data.path), y="classes").conditions == "clusters"
    assert Prepared(str(data.path), labels=False).num_classes == 0
    with pytest.raises(ValueError, match="balance is between classes, and the images have clusters"):
        Prepared(str(data.path), balance=1)


def test_clusters_replace_labels(make, photos):
    made = make(photos, clusters=4)
    assert made.facts["classes"] == [f"cluster {k}" for k in range(4)] and set(made.labels.tolist()) == {0, 1, 2, 3}
    assert made.by_name["cat/3.png"]["label"] == "cat"


def test_bands_of_different_units_count_equally(make, tmp_path):
    """The first band is noise in large units, the second tells two groups apart in small ones."""
    random, group = np.random.default_rng(0), np.arange(80) % 2
    first = random.normal(5000, 900, (80, 6, 6))
    second = 0.001 * group[:, None, None] + random.normal(0, 1e-4, (80, 6, 6))
    np.save(tmp_path / "a.npy", np.stack([first, second], 3).astype(np.float32))
    made = make(tmp_path / "a.npy", clusters=2, layout="NHWC")
    where = made.rows % 2  # the row of an image is its number
    assert len(set(zip(made.labels.tolist(), where.tolist(), strict=True))) == 2


def test_many_images_are_represented_by_some(make, coloured, monkeypatch):
    monkeypatch.setattr(module, "MOST", 12)
    made = make(coloured, clusters=3)
    assert len(set(zip(made.labels.tolist(), colours(made).tolist(), strict=True))) == 3


def test_an_interrupted_search_is_continued_to_the_same_bytes(make, coloured, tmp_path, monkeypatch):
    whole = make(coloured, clusters=3).folder
    out, said = tmp_path / "again" / whole.name, []

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffusion.data.clusters.kmeans", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(coloured, out, said.append, clusters=3, workers=1, max_bad=1)
    assert said == ["interrupted; the same command continues"] and not (out / "dataset.json").exists()
    prepare(coloured, out, clusters=3, workers=1, max_bad=1)
    for file in ("labels.npy", "manifest.jsonl", "dataset.json", "contact.png", "report.html"):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_finished_folder_knows_its_clusters(make, coloured):
    made = make(coloured)
    assert made.facts["clusters"] == 0 and "cluster" not in made.manifest[0] and made.facts["classes"] == []
    facts = json.loads((made.folder / "dataset.json").read_text())
    del facts["settings"]["clusters"]  # as older versions wrote it
    (made.folder / "dataset.json").write_text(json.dumps(facts))
    prepare(coloured, made.folder, workers=1, max_bad=1)
    with pytest.raises(ValueError, match="prepared already, with clusters 0 instead of 3"):
        prepare(coloured, made.folder, workers=1, max_bad=1, clusters=3)


@pytest.mark.parametrize("k, said", [
    ("1", "--clusters: wanted at least 2, or 0 for none; got 1"),
    ("-2", "--clusters: wanted at least 2"),
    ("70", "clusters: wanted 70, and the 56 images have 56 different values; choose at most 56"),
])  # fmt: skip
def test_numbers_that_are_refused_are_one_line(k, said, coloured, tmp_path, capsys):
    words = ["prepare", str(coloured), "--out", str(tmp_path / "out"), "--workers", "1", "--clusters", k]
    assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("diffusion prepare: error: ") and said in line, line
