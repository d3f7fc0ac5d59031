"""Duplicates: candidates equal those of a comparison of all pairs, and groups are as planted."""

import hashlib

import numpy as np

from diffusion.preparing.images.marks import marks
from diffusion.preparing.shards.copies import Search, copies


def found(images, width=255):
    noted = marks(images, len(images[0]))
    assert all(d.tobytes() == hashlib.sha256(i.tobytes()).digest() for d, i in zip(noted.digest, images, strict=True))
    return copies(noted.digest, noted.look, noted.small, lambda i: images[i], width)


def test_candidates_are_all_pairs_within_three_bits():
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 60, np.uint64)
    flips = [sum(1 << int(b) for b in random.choice(64, k, replace=False)) for k in (0, 1, 2, 3, 4, 5)]
    values = np.concatenate([base ^ np.uint64(f) for f in flips])
    small = np.full((len(values), 72), 100, np.uint8)
    small[:7] += 50  # far from all others, whatever their hashes
    search = Search(values, small, 255, 3)
    wanted = {
        (i, j)
        for j in range(len(values))
        for i in range(j)
        if (int(values[i]) ^ int(values[j])).bit_count() <= 3 and (i < 7) == (j < 7)
    }
    assert len(wanted) > 200 and set(search.pairs(np.arange(len(values)))) == wanted and search.complete


def test_groups_are_as_planted():
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (3, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8) for _ in range(50)]
    noisy = np.clip(images[7] + random.normal(0, 3, (3, 32, 32)), 0, 255).astype(np.uint8)
    dark = (images[9] // 2).astype(np.uint8)  # nearly the same hash, but other pixels
    images += [images[3].copy(), noisy, dark, noisy.copy()]
    for scale, dtype, width in ((1, np.uint8, 255), (257, np.uint16, 65535), (10.0, np.float32, 2550)):
        those = found([(i.astype(float) * scale).astype(dtype) for i in images], width)
        assert those.complete
        assert those.first.tolist() == those.group.tolist() == [*range(50), 3, 7, 52, 7]
        assert np.flatnonzero(those.exact).tolist() == [50, 53]


def test_each_copy_is_near_to_its_first_and_chains_are_one_group():
    """A slow fade: neighbours are nearly equal, the ends are not."""
    random = np.random.default_rng(2)
    image = random.integers(60, 120, (1, 4, 4)).repeat(8, 1).repeat(8, 2)
    fade = [np.clip(image + 8 * k, 0, 255).astype(np.uint8) for k in random.permutation(16)]
    those = found(fade)
    assert (those.group == 0).all() and 4 <= len(set(those.first.tolist())) <= 8
    for i, k in enumerate(those.first):
        assert abs(fade[i].astype(float) - fade[k]).max() < 12.75


def test_thousands_of_flat_images_are_compared_by_their_brightness():
    those = found([np.full((1, 16, 16), v % 250, np.uint8) for v in range(3000)])
    assert those.complete and those.exact.sum() == 2750
    assert len(set(those.first.tolist())) == 20 and (those.group == 0).all()  # 250 values, 13 apart
