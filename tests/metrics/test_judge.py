import pytest
import torch

from diffusion.data import Digits
from diffusion.metrics import Judge, Labelled


@pytest.fixture(scope="module")
def judge():
    data, state = Digits(), torch.get_rng_state()
    judge = Judge(*(Labelled.of(*data.arrays(split)) for split in ("train", "test")), epochs=8)
    assert torch.equal(state, torch.get_rng_state())
    return judge


def test_judge_is_accurate_on_unseen_digits(judge):
    assert judge.accuracy > 0.97


def test_judge_measures_in_units_of_the_training_digits(judge):
    """For the training digits the distance is 0, the spread 1, and the nearest digit the image itself."""
    x, y = judge.train
    assert judge.floor > 1
    assert judge.distance(judge.net.features(x)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(judge.spread(x, y), torch.ones(10))
    assert judge.nearness(x) == pytest.approx(0, abs=1e-3) and judge.nearness(judge.test.x) == pytest.approx(1)
    assert judge.agrees(x, y).float().mean() > 0.99


def test_judge_detects_bad_pictures(judge):
    """Wrong labels, noise, one image per class, and half the contrast."""
    x, y = judge.test
    assert judge.agrees(x, (y + 1) % 10).float().mean() < 0.03
    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert judge.distance(judge.net.features(noisy)) > 3 * judge.floor
    one = torch.stack([judge.train.x[judge.train.y == k][0] for k in range(10)]).repeat_interleave(20, 0)
    assert judge.spread(one, torch.arange(10).repeat_interleave(20)).max() < 1e-3
    assert judge.spread(x / 2, y).max() < 0.6


def test_judge_error_is_the_spread_between_sets(judge):
    """The deviation of the distance over 30 disjoint sets of 1,000 features matches the estimate from one set."""
    g = torch.Generator().manual_seed(0)
    values, vectors = torch.linalg.eigh(judge.real.cov)  # some features are dead: no Cholesky factor
    z = torch.randn(30_000, len(values), generator=g, dtype=torch.float64) * values.clamp(min=0).sqrt()
    sets = (judge.real.mean + z @ vectors.T).split(1000)
    between = float(torch.tensor([judge.distance(s) for s in sets]).std())
    guess = torch.tensor([judge.error(s) for s in sets[:10]])
    assert between < float(guess.mean()) < 2 * between
