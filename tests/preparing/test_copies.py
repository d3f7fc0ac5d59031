"""Duplicates: candidates equal those of a comparison of all pairs, and groups are as planted."""

import hashlib

import numpy as np

from diffusion.preparing.copies import copies, neighbours
from diffusion.preparing.marks import look


def digests(images):
    return np.stack([np.frombuffer(hashlib.sha256(i.tobytes()).digest(), np.uint8) for i in images])


def test_neighbours_are_all_pairs_within_three_bits():
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 60, np.uint64)
    flips = [sum(1 << int(b) for b in random.choice(64, k, replace=False)) for k in (0, 1, 2, 3, 4, 5)]
    values = np.unique(np.concatenate([base ^ np.uint64(f) for f in flips]))
    found, complete = neighbours(values)
    wanted = {
        (i, j)
        for i in range(len(values))
        for j in range(len(values))
        if i != j and (int(values[i]) ^ int(values[j])).bit_count() <= 3
    }
    assert complete and len(wanted) > 300
    assert {(i, j) for i, those in found.items() for j in those} == wanted


def test_groups_are_as_planted():
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (3, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8) for _ in range(50)]
    noisy = np.clip(images[7] + random.normal(0, 3, (3, 32, 32)), 0, 255).astype(np.uint8)
    dark = (images[9] // 2).astype(np.uint8)  # the same hash, but other pixels
    images += [images[3].copy(), noisy, dark, noisy.copy()]
    found = copies(digests(images), np.array([look(i) for i in images], np.uint64), lambda i: images[i], 255)
    assert found.complete
    assert found.first.tolist() == [*range(50), 3, 7, 52, 7]
    assert np.flatnonzero(found.exact).tolist() == [50, 53]


def test_thousands_of_flat_images_are_compared_by_their_colour():
    images = [np.full((1, 16, 16), v % 250, np.uint8) for v in range(3000)]
    found = copies(digests(images), np.array([look(i) for i in images], np.uint64), lambda i: images[i], 255)
    assert found.complete and found.exact.sum() == 2750
    assert len(set(found.first.tolist())) == 20  # 250 values, 5 % of the range apart
