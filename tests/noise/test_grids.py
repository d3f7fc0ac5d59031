import pytest
import torch

from diffusion.noise import VE, VP, Cosine, Flow, Karras, Linear, SubVP
from diffusion.noise.grids import GRIDS, times


@pytest.mark.parametrize("grid", ["trailing", "leading", "linspace", "quadratic"])
def test_grids_cover_the_table_for_every_number_of_steps(grid):
    """n distinct falling levels of T = 500 for every n, from the noisy to the clean end; no negative index."""
    schedule = Linear(500)
    for n in range(1, 501):
        t = times(grid, schedule, n)
        index = (t * 500 - 1).round()
        assert len(t) == n and (index.diff() < 0).all(), n
        assert torch.allclose(t * 500 - 1, index, atol=1e-9), n  # levels of the table only
        gap = 500 / n
        if grid == "leading":
            assert index[-1] == 0 and index[0] >= 500 - gap - 1, n
        elif grid == "linspace":
            assert index[0] == 499 and (n == 1 or index[-1] == 0), n
        else:
            assert index[0] == 499 and 0 <= index[-1] <= gap, n
    assert torch.equal(times(grid, schedule, 500), (torch.arange(500, 0, -1).double()) / 500)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", [Linear(500), Cosine(500, zero_snr=True), VP(), VE(), Karras(), Flow(), SubVP()])
def test_every_grid_goes_from_noise_to_t_min_on_every_schedule(grid, schedule):
    for n in (1, 2, 3, 10, 77, 500):
        t = times(grid, schedule, n)
        assert t.shape == (n,) and t.dtype == torch.float64 and (t.diff() < 0).all(), n
        assert t[-1] >= schedule.t_min - 1e-12 and (t[0] == 1 or grid == "leading"), n
        if grid in ("linspace", "karras", "log_snr", "leading") and n > 1:
            assert float(t[-1]) == pytest.approx(schedule.t_min, abs=1.1e-3), n


def test_karras_and_log_snr_are_evenly_spaced():
    ratio = VE().level(times("karras", VE(), 20)).ratio ** (1 / 7)
    torch.testing.assert_close(ratio.diff(), ratio.diff().mean().expand(19), rtol=1e-6, atol=0)
    torch.testing.assert_close(times("karras", Karras(), 18), times("linspace", Karras(), 18), rtol=0, atol=1e-9)
    steps = VP().level(times("log_snr", VP(), 20)).log_snr.diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [0, -1, 501])
def test_grids_reject_invalid_step_counts(n):
    with pytest.raises(ValueError, match="1 .. 500"):
        times("trailing", Linear(500), n)


def test_unknown_grid_error_lists_the_known_grids():
    with pytest.raises(ValueError, match="trailing, leading, linspace"):
        times("squared", Linear(), 10)
