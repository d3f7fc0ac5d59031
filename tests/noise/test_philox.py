"""Philox equals the known answers of its library, and its normal numbers are normal and independent."""

import math

import pytest
import torch

from diffusion.noise.philox import normals, philox

KNOWN = (  # Random123, kat_vectors: philox4x32 10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    low, high = words(key)
    found = philox(tuple(torch.tensor([word]) for word in words(counter)), high << 32 | low)
    assert [int(word) for word in found] == words(answer)


def test_rows_depend_on_key_number_and_draw_alone():
    rows = torch.tensor([5, 2**40, 0, 7])
    whole = normals(1, rows, 3, 30)
    assert torch.equal(whole[[3, 0]], normals(1, rows[[3, 0]], 3, 30))
    assert torch.equal(whole[:, :7], normals(1, rows, 3, 7))
    assert len({tuple(whole[k].tolist()) for k in range(4)}) == 4
    for other in (normals(2, rows, 3, 30), normals(1, rows, 4, 30), normals(1 << 32, rows, 3, 30)):
        assert not (whole == other).any()


def test_normal_numbers_are_those_of_their_words():
    """By Python's integers and floats, to float32's rounding: rows and draws that use all 64 bits of the counter."""
    key, rows, draw, size = 0x1234567890ABCDEF, (3, 2**40 + 9), 2**32 - 1, 10
    wanted = []
    for row in rows:
        for block in range(3):
            a, b, c, d, low, high = block, draw, row % 2**32, row >> 32, key % 2**32, key >> 32
            for _ in range(10):
                first, second = a * 0xD2511F53, c * 0xCD9E8D57
                a, b, c, d = second >> 32 ^ b ^ low, second % 2**32, first >> 32 ^ d ^ high, first % 2**32
                low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
            for u, v in ((a, b), (c, d)):
                radius, angle = math.sqrt(-2 * math.log((u + 0.5) / 2**32)), 2 * math.pi * (v + 0.5) / 2**32
                wanted += [radius * math.cos(angle), radius * math.sin(angle)]
    wanted = torch.tensor(wanted, dtype=torch.float64).view(2, 12)[:, :size].float()
    torch.testing.assert_close(normals(key, torch.tensor(rows), draw, size), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_ten_million_numbers_are_normal():
    """Bounds of 5 standard errors; the Kolmogorov-Smirnov statistic has the 1e-6 quantile 2.69 / sqrt(n)."""
    z = normals(0, torch.arange(10_000), 0, 1_000).double()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(variance / n)
    cdf = torch.special.ndtr(z.flatten().sort().values)
    steps = torch.arange(n, dtype=torch.float64) / n
    assert float(torch.maximum(cdf - steps, steps + 1 / n - cdf).max()) < 2.69 / math.sqrt(n)


@pytest.mark.slow
def test_ten_million_numbers_are_uncorrelated():
    """Between neighbours in an image (lags 1 to 8, a row), neighbouring images, draws and seeds: 5 standard errors."""
    rows, size = torch.arange(10_000), 1_000
    z = normals(0, rows, 0, size).double()
    for lag in (1, 2, 3, 4, 5, 6, 7, 8, 28, 32):
        a, b = z[:, lag:], z[:, :-lag]
        for f in (lambda u: u, torch.square):  # squares reveal dependent radii
            x, y = f(a) - f(z).mean(), f(b) - f(z).mean()
            assert abs(float((x * y).mean() / f(z).var())) < 5 / math.sqrt(a.numel())
    for other in (z.roll(1, 0), normals(0, rows, 1, size).double(), normals(1, rows, 0, size).double()):
        assert abs(float((z * other).mean())) < 5 / math.sqrt(z.numel())
