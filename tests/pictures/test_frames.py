import numpy as np
import pytest

from diffusion import pictures


@pytest.mark.parametrize("n, frames", [(50, 10), (3, 40), (1, 5), (1000, 2)])
def test_spread_includes_the_first_and_the_last_frame(n, frames):
    chosen = pictures.spread(n, frames)
    assert chosen[0] == 0 and chosen[-1] == n - 1 and len(chosen) == min(n, frames) and len(set(chosen)) == len(chosen)


def test_abreast_slows_the_shorter_film():
    a = [np.full((2, 3, 1), k, np.uint8) for k in range(5)]
    b = [np.full((2, 2, 1), 100 * k, np.uint8) for k in range(3)]
    frames = pictures.abreast([a, b], pad=1)
    assert len(frames) == 5 and frames[0].shape == (2, 6, 1)
    assert [f[0, 0, 0] for f in frames] == [0, 1, 2, 3, 4] and [f[1, 5, 0] for f in frames] == [0, 0, 100, 200, 200]
    assert all((f[:, 3] == 255).all() for f in frames)
