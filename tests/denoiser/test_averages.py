"""Profiles of power-function averages, and the combination of stored ones."""

import math

import numpy as np
import pytest
import torch

from diffusion.denoiser import averages
from diffusion.denoiser.averages import combination, exponent, overlaps, width

TABLE = {  # relative L2 error of the profile with K snapshots of .05 and .10, from an independent calculation
    8: {0.02: 0.25, 0.03: 0.10, 0.075: 0.013, 0.15: 0.033, 0.20: 0.078},
    16: {0.02: 0.12, 0.03: 0.039, 0.075: 0.0035, 0.15: 0.009, 0.20: 0.023},
    32: {0.02: 0.04, 0.03: 0.011, 0.075: 0.0009, 0.15: 0.0023, 0.20: 0.0065},
}


def stored(K):
    return [(exponent(w), (k + 1) / K) for k in range(K) for w in (0.05, 0.10)]


def test_the_exponents_are_the_published_ones_and_inverse_to_the_width():
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3) and exponent(0.10) == pytest.approx(6.94, abs=5e-3)
    for sigma_rel in (0.005, 0.02, 0.1, 0.25, averages.WIDEST):
        assert width(exponent(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)
    assert exponent(averages.WIDEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.3])
def test_a_width_beyond_the_plain_mean_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"wanted a width in \(0, 0.2887\]"):
        exponent(sigma_rel)


@pytest.mark.parametrize("g", [0.0, 6.9372, 16.972])
def test_the_weights_of_the_steps_telescope(g):
    """Each step multiplies the average by beta = (1 - 1/n)^(g + 1), so that step j has weight w_j at step n."""
    n = 200
    found = np.zeros(n)
    for k in range(1, n + 1):
        beta = (1 - 1 / k) ** (g + 1)
        found[:k] *= beta
        found[k - 1] += 1 - beta
    j = np.arange(1, n + 1)
    wanted = (j / n) ** (g + 1) - ((j - 1) / n) ** (g + 1)
    assert abs(found - wanted).max() < 1e-14 and found.sum() == pytest.approx(1, abs=1e-14)


def test_inner_products_are_those_of_quadrature():
    g, T = np.array([0.0, 3.0, 17.0]), np.array([0.5, 1.0, 0.8])
    t = (np.arange(200_000) + 0.5) / 200_000

    def profile(k):
        return np.where(t <= T[k], (g[k] + 1) * t ** g[k] / T[k] ** (g[k] + 1), 0)

    wanted = [[(profile(a) * profile(b)).mean() for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(overlaps(g, T, g, T), wanted, rtol=1e-4)


@pytest.mark.parametrize("K", [8, 16])
def test_a_stored_profile_is_reconstructed_as_itself(K):
    for k in (0, 5, 2 * K - 1):
        x, error = combination(stored(K), stored(K)[k])
        assert abs(x - np.eye(2 * K)[k]).max() < 1e-6 and error < 1e-6


@pytest.mark.parametrize("K", TABLE)
def test_errors_of_profiles_by_the_number_of_snapshots(K):
    for sigma_rel, wanted in TABLE[K].items():
        _, error = combination(stored(K), (exponent(sigma_rel), 1.0))
        digits = 2 if f"{wanted:g}"[-2:].lstrip("0.") == f"{wanted:g}"[-2:] else 1
        assert error == pytest.approx(wanted, abs=0.5 * 10 ** (math.floor(math.log10(wanted)) + 1 - digits) * 1.01), K


def test_factors_of_narrow_averages_are_large():
    """The amplification of rounding errors: why fp16 suffices from .03 on, and not below."""
    total = {w: abs(combination(stored(32), (exponent(w), 1.0))[0]).sum() for w in (0.02, 0.03, 0.10)}
    assert total[0.03] == pytest.approx(11, abs=0.5) and total[0.02] == pytest.approx(28, abs=0.5)
    assert total[0.10] == pytest.approx(1)


@pytest.fixture
def run(tmp_path):
    """A run whose weights are t at time t, so that the average of width g is E[t] = (g + 1) / (g + 2) T."""
    for k in range(16):
        T = 100 * (k + 1)
        for w in (0.05, 0.10):
            g = exponent(w)
            weights = {"a": torch.full((3,), T * (g + 1) / (g + 2), dtype=torch.float32), "b": torch.ones(2).half()}
            averages.write(tmp_path, k + 1, T, w, weights)
    return tmp_path


@pytest.mark.parametrize("sigma_rel", [0.03, 0.075, 0.15])
def test_an_average_of_weights_follows_its_profile(run, sigma_rel):
    g = exponent(sigma_rel)
    made = averages.averaged(run, sigma_rel)
    assert made.step == 16 and made.snapshots == 32
    assert float(made.weights["a"][0]) == pytest.approx(1600 * (g + 1) / (g + 2), rel=3e-3)
    torch.testing.assert_close(made.weights["b"], torch.ones(2))
    earlier = averages.averaged(run, sigma_rel, step=9)
    assert earlier.step == 9 and earlier.snapshots == 18
    assert float(earlier.weights["a"][0]) == pytest.approx(900 * (g + 1) / (g + 2), rel=1e-2)


def test_a_damaged_snapshot_is_refused(run):
    path = averages.snapshots(run)[3].path
    path.write_bytes(path.read_bytes()[:-100] + b"0" * 100)
    with pytest.raises(ValueError, match=path.name):
        averages.averaged(run, 0.1)


def test_a_run_without_snapshots_says_how_to_get_them(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="they begin at step 3"):
        for s in averages.snapshots(run)[:4]:
            s.path.unlink()
        averages.averaged(run, 0.1, step=2)
    assert averages.clean(run) > 0 and not (run / "averages").exists()
    with pytest.raises(FileNotFoundError, match="train with --posthoc.snapshots 16"):
        averages.averaged(run, 0.1)
