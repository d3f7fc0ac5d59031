"""Plots contain the values that they are given."""

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from diffusion.bench.analytic import Gaussian
from diffusion.noise import VE, Cosine, Flow, Linear
from diffusion.pictures import plots


def test_schedules_plot_matches_the_schedules():
    made = plots.schedules({"linear": Linear(), "ve": VE()})
    kept, added, snr = (axes.lines for axes in made.axes)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    np.testing.assert_allclose(kept[0].get_ydata(), torch.cumprod(1 - betas, 0), rtol=1e-6)
    np.testing.assert_allclose(added[0].get_ydata(), betas[1:], rtol=1e-6)
    sigma = VE().scales(torch.tensor([1.0]).double())[1]
    assert snr[1].get_ydata()[-1] == pytest.approx(float(-2 * sigma.log()))
    assert kept[1].get_ydata()[-1] == pytest.approx(float(1 / (1 + sigma**2)))
    assert [t.get_text() for t in made.axes[0].get_legend().get_texts()] == ["linear", "ve"]


def test_noised_plot_matches_the_schedule():
    x0 = torch.full((1, 4, 4), 0.5)
    made = plots.noised(x0, {"flow": Flow(), "cosine": Cosine()}, [0, 0.5, 1])
    assert len(made.axes) == 6 and made.axes[1].get_title() == "t = 0.5"
    first, last = (np.asarray(made.axes[k].images[0].get_array()) for k in (0, 2))
    assert (first == 191).all() and last.std() > 30  # (0.5 + 1) / 2 of 255, rounded; then noise
    same = np.asarray(made.axes[5].images[0].get_array())
    assert np.abs(last.astype(int) - same).max() <= 2  # the same noise under every schedule


def test_rows_of_pictures_may_differ_in_length():
    made = plots.pictures({"a": torch.zeros(3, 3, 2, 2), "b": np.zeros((1, 2, 2, 1), np.uint8)}, ["x", "y", "z"])
    assert [len(a.images) for a in made.axes] == [1, 1, 1, 1, 0, 0] and made.axes[3].get_ylabel() == "b"


def test_curves_plot_has_one_line_per_run(tmp_path):
    for version, shift in ((0, 0.0), (1, 5.0)):
        writer = SummaryWriter(str(tmp_path / f"version_{version}"))
        for step in range(3):
            writer.add_scalar("train/loss", step + shift, step)
        writer.close()
    (lines,) = (axes.lines for axes in plots.curves(tmp_path / "version_0").axes)
    assert lines[0].get_ydata().tolist() == [0, 1, 2] and len(lines) == 1
    both = plots.curves(tmp_path, ["val/loss", "train/loss"]).axes
    assert len(both) == 1 and sorted(line.get_ydata()[0] for line in both[0].lines) == [0, 5]
    SummaryWriter(str(tmp_path / "young")).close()  # stopped before its first point
    assert plots.curves(tmp_path / "young").axes[0].texts[0].get_text() == "nothing logged yet"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no TensorBoard event files"):
        plots.curves(tmp_path / "empty")


def test_field_plot_of_a_gaussian_points_to_its_mean():
    data = Gaussian(torch.zeros(2, 1, 1), 0.5)
    t = Flow().level(torch.tensor(0.5).double())
    made = plots.field(lambda x, t: data(x.double(), t), {"t = 0.5": t})
    arrows = made.axes[0].collections[0]
    towards = arrows.X * arrows.U + arrows.Y * arrows.V
    assert (towards <= 1e-9).all() and towards.min() < -1


def test_lines_plot_matches_its_points():
    made = plots.lines({"a": [(0, 1.0), (2, 0.5)], "b": [(1, 2.0)]}, "scale", mark=1).axes[0]
    assert made.lines[0].get_xydata().tolist() == [[0, 1], [2, 0.5]] and made.get_xlabel() == "scale"
    assert [t.get_text() for t in made.get_legend().get_texts()] == ["a", "b"]
    assert made.lines[2].get_xdata() == [1, 1] and made.get_ylim()[0] == 0


def test_points_plot_and_film_match_their_points():
    x = torch.tensor([[0.5, -1.0], [1.0, 1.0]])
    made = plots.points({"a": x, "b": x.view(2, 2, 1, 1)})
    assert [a.collections[0].get_offsets().tolist() for a in made.axes] == [x.tolist()] * 2
    frames = plots.film([x, -x], ["t = 1", "t = 0"])
    assert len(frames) == 2 and frames[0].shape == frames[1].shape and not np.array_equal(*frames)
