"""The hostile folder: every kind is handled as documented, none stops the rest, none is lost from the manifest."""

import html
import os
import sys

import numpy as np
import pytest
from PIL import Image

from .conftest import Made
from .hostile import SIDE, build, kinds, saved, scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the folder needs Linux's file systems")
NAMES = [kind.name for kind in kinds()]

CRASH = """
import os
try:
    from diffusion.preparing.images import decode
except ImportError:  # a process that is not a worker of this test
    pass
else:
    header = decode.header
    decode.header = lambda data: os._exit(11) if data == b"crash" else header(data)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The prepared folder, and what was expected by name."""
    from diffusion.preparing.prepare import prepare

    root = tmp_path_factory.mktemp("hostile")
    (root / "folder").mkdir()
    expected = {kind.name: kind for kind in build(root / "folder")}
    told = []
    prepare(root / "folder", root / "out", told.append, size=SIDE, max_bad="100%", workers=1, label="none")
    return Made(root / "out"), expected, "\n".join(told)


def test_there_are_at_least_60_kinds(hostile):
    assert len(hostile[1]) > 100 and len(set(NAMES)) == len(NAMES)


def test_each_is_handled_as_documented(hostile):
    made, expected, _ = hostile
    wrong = []
    for name, kind in expected.items():
        line = made.by_name.get(name, {"decision": "lost"})
        said = " ".join([line.get("reason", ""), *line.get("notes", ())])
        if line["decision"] != kind.decision or kind.says not in said or (kind.decision != "kept" and not said):
            wrong.append((name[:40], line["decision"], said, "wanted", kind.decision, kind.says))
    assert not wrong, "\n".join(map(str, wrong))


def test_none_is_lost_and_none_is_invented(hostile):
    made, expected, _ = hostile
    assert sorted(line["file"] for line in made.manifest) == sorted(expected)
    kept = [line for line in made.manifest if line["decision"] == "kept"]
    assert len(made.rows) == len(kept) and [line["row"] for line in kept] == made.rows.tolist()


def test_what_was_kept_is_upright_and_sharp(hostile):
    """The red spot is at the top left of each picture with colours, once it has been turned."""
    made, expected, _ = hostile
    turned = [f"turn{k}.jpg" for k in range(2, 9)] + ["turn6.png"]
    corner = {2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}  # where the turn takes it
    for name in turned:
        image = made.image(name).astype(int)
        spots = {"tl": image[:, :4, :4], "tr": image[:, :4, -4:], "bl": image[:, -4:, :4], "br": image[:, -4:, -4:]}
        red = max(spots, key=lambda k: (spots[k][0] - spots[k][1]).mean())
        assert red == corner[int(name[4])], name
    line = made.by_name["turn6.jpg"]
    assert (line["width"], line["height"]) == (48, 64)
    reference = np.asarray(scene(0).resize((SIDE, SIDE), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert made.image("exact.png").shape == reference.shape == (3, SIDE, SIDE)


def test_the_report_survives_the_names(hostile):
    made, _, told = hostile
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    assert "truncated.jpg" in page and "<b>&amp;.png" not in page and "\x1b" not in page + told
    assert html.escape("dangling.png") in page and "more than 178,956,970 pixels" in page and "advice" in told
    assert Image.open(made.folder / "contact.png").size[0] > 500


def test_too_many_bad_images_stop_the_run(tmp_path, photos, make):
    for k in range(3):
        (photos / f"cat/bad{k}.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"3 of 27 images were refused, more than .*3 x no image of a known kind"):
        make(photos, max_bad="5%")
    assert len(make(photos, max_bad="12%").rows) == 24


def test_an_image_that_ends_its_process_is_found_and_refused(tmp_path, photos, monkeypatch):
    """A decoder that crashes takes its worker with it; the block is made again without the image."""
    from diffusion.preparing.prepare import prepare

    (tmp_path / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.getcwd()}")
    for name in ("dog/5.png", "cat/3.png"):
        (photos / name).write_bytes(b"crash")
    monkeypatch.setattr("diffusion.preparing.survey.LOOK", 1)
    made = Made(prepare(photos, tmp_path / "out", max_bad=1, workers=2))
    bad = [line for line in made.manifest if line["decision"] == "refused"]
    assert [line["file"] for line in bad] == ["cat/3.png", "dog/5.png"] and len(made.rows) == 22
    assert all("ended the process" in line["reason"] for line in bad)


def test_saved_pictures_are_the_same_each_time():
    assert saved(scene(3), "PNG") == saved(scene(3), "PNG") and [k.data for k in kinds()] == [k.data for k in kinds()]
