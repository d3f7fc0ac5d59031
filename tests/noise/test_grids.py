import pytest
import torch

from diffusion.noise import Linear
from diffusion.noise.grids import GRIDS, times


@pytest.mark.parametrize("grid", GRIDS)
def test_every_n_covers_the_schedule(grid):
    """n distinct falling levels of T = 500, for every n, from the noisy end to the clean one: no negative index."""
    schedule = Linear(500)
    for n in range(1, 501):
        t = times(grid, schedule, n)
        index = (t * 500 - 1).round()
        assert len(t) == n and (index.diff() < 0).all(), n
        assert torch.allclose(t * 500 - 1, index, atol=1e-9), n  # only levels that were trained
        gap = 500 / n
        if grid == "leading":
            assert index[-1] == 0 and index[0] >= 500 - gap - 1, n
        elif grid == "trailing":
            assert index[0] == 499 and 0 <= index[-1] <= gap, n
        else:
            assert index[0] == 499 and (n == 1 or index[-1] == 0), n
    assert torch.equal(times(grid, schedule, 500), (torch.arange(500, 0, -1).double()) / 500)


@pytest.mark.parametrize("n", [0, -1, 501])
def test_impossible_step_counts_are_refused(n):
    with pytest.raises(ValueError, match="1 .. 500"):
        times("trailing", Linear(500), n)


def test_unknown_grid_lists_the_known():
    with pytest.raises(ValueError, match="trailing, leading, linspace"):
        times("squared", Linear(), 10)
