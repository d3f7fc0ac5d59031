"""Nearest rows: right answers, order, and the same in blocks as at once."""

import pytest
import torch

from diffusion.data.store import InMemory
from diffusion.metrics import distances
from diffusion.metrics.distances import nearest, neighbours
from diffusion.metrics.pixels import Pixels
from diffusion.support.scaling import Scaling


def test_neighbours_on_a_line():
    """Points at 0, 1, 3, 7 and 15: distances are differences."""
    y = torch.tensor([[0.0], [1], [3], [7], [15]])
    found, index = neighbours(torch.tensor([[1.0], [6.5]]), y, 3)
    assert found.tolist() == [[0, 1, 2], [0.5, 3.5, 5.5]]
    assert index.tolist() == [[1, 0, 2], [3, 2, 1]]


@pytest.mark.parametrize("k", [1, 4, 60])
@pytest.mark.parametrize("numbers", [2**24, 200])
def test_neighbours_are_those_of_all_distances(k, numbers, monkeypatch):
    """Images in memory and in a store, in one block and in many: the k least of all distances in float64."""
    monkeypatch.setattr(distances, "NUMBERS", numbers)
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (60, 1, 4, 4), generator=draw, dtype=torch.uint8)
    x = Scaling().encode(torch.randint(0, 256, (23, 1, 4, 4), generator=draw, dtype=torch.uint8))
    y = Scaling().encode(raw)
    whole = torch.cdist(x.double().flatten(1), y.double().flatten(1))
    wanted, its = whole.sort(1)
    for images in (y, Pixels(InMemory(raw), torch.arange(60), Scaling())):
        found, index = neighbours(x, images, k, size=5)
        assert torch.allclose(found, wanted[:, :k], rtol=1e-12) and torch.equal(index, its[:, :k])
    first, place = nearest(x, y)
    assert torch.equal(first, found[:, 0]) and torch.equal(place, index[:, 0])
