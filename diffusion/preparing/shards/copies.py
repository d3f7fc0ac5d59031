"""Duplicates among stored images: equal ones by their hash, nearly equal ones by a difference hash and their pixels.

Two images are nearly equal if their difference hashes differ in at most 3 of 64 bits and the root mean square of the
difference of their pixels is below 5 % of the range. Candidates are found by the pigeonhole principle: of 6 bands of
the hash, at least 3 are equal, so each pair meets in one of 20 tables keyed by 3 bands. There they are sorted by
brightness, and each is compared with the next 256 while their brightness, and the means of 72 areas, allow such a
difference: a mean over an area differs by at most as much as its pixels do.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

BITS = 3
BANDS = 6
NEAR = 0.05  # of the range
LUMA = 1.33  # the largest ratio of a difference in brightness to the root mean square over R, G and B
CROWD = 256  # images of one key and nearly one brightness that an image is compared with
MOST = 20_000_000  # candidates


class Copies(NamedTuple):
    """The duplicates among N images."""

    first: np.ndarray  # (N,) int64: the image that it equals or nearly equals; its own number if there is none
    group: np.ndarray  # (N,) int64: the first of all images that are linked to it by near equality
    exact: np.ndarray  # (N,) bool: equal to an earlier one to the byte
    complete: bool  # whether every pair was compared


def copies(
    digest: np.ndarray, look: np.ndarray, small: np.ndarray, image: Callable[[int], np.ndarray], width: float
) -> Copies:
    """The duplicates among images.

    Args:
        digest: (N, 32) uint8, hashes of the stored bytes.
        look: (N,) uint64, difference hashes.
        small: (N, 72), the mean brightness of 8 x 9 areas.
        image: the stored image of a number.
        width: of the range of values.
    """
    n = len(digest)
    if not n:
        return Copies(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), True)
    _, start, same = np.unique(digest, axis=0, return_index=True, return_inverse=True)
    first = start[same.reshape(-1)].astype(np.int64)
    exact = first != np.arange(n)
    group, search, kept = first.copy(), Search(look, small, width, len(image(0))), _Kept(image)
    for i, j in search.pairs(np.flatnonzero(~exact)):  # sorted by j, then i: what i follows is settled
        alone = first[j] == j and first[i] == i
        if not alone and _root(group, i) == _root(group, j):
            continue
        apart = (kept(i) - kept(j)).reshape(-1)
        if float(apart @ apart) < (NEAR * width) ** 2 * apart.size:
            a, b = sorted((_root(group, i), _root(group, j)))
            group[b] = a
            if alone:
                first[j] = i
    return Copies(first[first], np.array([_root(group, i) for i in range(n)], np.int64), exact, search.complete)


def _root(group: np.ndarray, i: int) -> int:
    while group[i] != i:
        i = group[i]
    return int(i)


class _Kept:
    """The last images that were asked for, as float64, in which sums of integers are exact."""

    def __init__(self, image: Callable[[int], np.ndarray], most: int = 1024) -> None:
        self._image, self._most, self._held = image, most, {}

    def __call__(self, i: int) -> np.ndarray:
        if i not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            self._held[i] = self._image(i).astype(np.float64)
        return self._held[i]


class Search:
    """The search for candidates; `complete` tells afterwards whether every pair was compared."""

    def __init__(self, look: np.ndarray, small: np.ndarray, width: float, channels: int) -> None:
        self.look, self.small, self.complete = look, small, True
        self.bright = small.astype(np.float32).mean(1)
        bytes = small.dtype == np.uint8  # which are rounded
        self.limit = NEAR * width * (LUMA if bytes and channels == 3 else 1) + bytes

    def pairs(self, some: np.ndarray) -> Iterator[tuple[int, int]]:
        """Candidates (i, j), i < j, of some of the images, sorted by j, then i."""
        found = np.zeros(0, np.int64)  # j * N + i
        for keys in self._keys():
            parts, order = [found], some[np.lexsort((self.bright[some], keys[some]))]
            key, bright = keys[order], self.bright[order]
            at = np.arange(len(order))
            for lag in range(1, CROWD + 1):
                at = at[: np.searchsorted(at, len(order) - lag)]
                at = at[(key[at] == key[at + lag]) & (bright[at + lag] - bright[at] <= self.limit)]
                if not len(at):
                    break
                parts.append(self._close(order[at], order[at + lag]))
            self.complete &= not len(at)
            found = np.unique(np.concatenate(parts))
            if len(found) > MOST:
                self.complete = False
                break
        yield from zip(*(part.tolist() for part in np.divmod(found, len(self.look))[::-1]), strict=True)

    def _keys(self) -> Iterator[np.ndarray]:
        """The keys (N,) uint64 of each table; bands are interleaved, so that each has bits of the whole picture."""
        for bands in combinations(range(BANDS), BANDS - BITS):
            yield self.look & np.uint64(sum(1 << bit for bit in range(64) if bit % BANDS in bands))

    def _close(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Those pairs whose hashes and areas are close, each as one number."""
        near = _count(self.look[a] ^ self.look[b]) <= BITS
        a, b = a[near], b[near]
        apart = self.small[a].astype(np.float32) - self.small[b]
        near = np.sqrt(np.square(apart).mean(1)) <= self.limit
        return np.maximum(a, b)[near] * len(self.look) + np.minimum(a, b)[near]


def _count(words: np.ndarray) -> np.ndarray:
    """The number of bits that are set in each uint64."""
    return ONES[np.ascontiguousarray(words).view(np.uint16).reshape(-1, 4)].sum(1)


ONES = np.unpackbits(np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1).astype(np.uint8)
