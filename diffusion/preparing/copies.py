"""Duplicates among stored images: equal ones by their hash, nearly equal ones by a difference hash.

Two images are nearly equal if their difference hashes differ in at most 3 of 64 bits and the root mean square of the
difference of their pixels is below 5 % of the range. Candidates are found by the pigeonhole principle: of 6 bands of
the hash, at least 3 are equal, so each pair meets in one of 20 tables keyed by 3 bands.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

BITS = 3
BANDS = 6
NEAR = 0.05  # of the range
CROWD = 2048  # different hashes with the same three bands, beyond which only the first are compared
HEADS = 64  # images of one hash, none a copy of another, that later ones are compared with


class Copies(NamedTuple):
    """For each of N images, the first one that it equals or nearly equals."""

    first: np.ndarray  # (N,) int64; an image's own number if there is none before it
    exact: np.ndarray  # (N,) bool: equal to the byte
    complete: bool  # whether every pair was compared


def copies(digest: np.ndarray, look: np.ndarray, image: Callable[[int], np.ndarray], width: float) -> Copies:
    """The duplicates among images.

    Args:
        digest: (N, 32) uint8, hashes of the stored bytes.
        look: (N,) uint64, difference hashes.
        image: the stored image of a number.
        width: of the range of values.
    """
    n = len(digest)
    if not n:
        return Copies(np.zeros(0, np.int64), np.zeros(0, bool), True)
    _, start, same = np.unique(digest, axis=0, return_index=True, return_inverse=True)
    first = start[same.reshape(-1)].astype(np.int64)
    exact = first != np.arange(n)
    singles = np.flatnonzero(~exact)
    values, member = np.unique(look[singles], return_inverse=True)
    near, complete = neighbours(values)
    heads: dict[int, list[int]] = defaultdict(list)  # by hash: the images that are copies of none before them
    kept = _Kept(image)
    for i, v in zip(singles.tolist(), member.reshape(-1).tolist(), strict=True):
        others = sorted(h for w in (v, *near.get(v, ())) for h in heads.get(w, ()))
        head = next((h for h in others if _near(kept(h), kept(i), width)), None)
        if head is not None:
            first[i] = head
        elif len(heads[v]) < HEADS:
            heads[v].append(i)
        else:
            complete = False
    return Copies(first[first], exact, complete)


class _Kept:
    """The last images that were asked for, as float32."""

    def __init__(self, image: Callable[[int], np.ndarray], most: int = 1024) -> None:
        self._image, self._most, self._held = image, most, {}

    def __call__(self, i: int) -> np.ndarray:
        if i not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            self._held[i] = self._image(i).astype(np.float32)
        return self._held[i]


def _near(a: np.ndarray, b: np.ndarray, width: float) -> bool:
    return float(np.sqrt(np.square(a - b).mean(dtype=np.float64))) < NEAR * width


def neighbours(values: np.ndarray) -> tuple[dict[int, set[int]], bool]:
    """For each of the different hashes, the numbers of those within 3 bits; and whether these are all."""
    found, complete = defaultdict(set), True
    for left, right, every in _close(values):
        complete &= every
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            found[a].add(b)
            found[b].add(a)
    return found, complete


def _close(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Pairs of different hashes within 3 bits, as two arrays per table; a pair may come in several."""
    bits = np.unpackbits(values.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    for bands in combinations(range(BANDS), BANDS - BITS):
        chosen = np.isin(np.arange(64) % BANDS, bands)  # interleaved: a band has bits of the whole picture
        key = np.zeros((len(values), 64), np.uint8)
        key[:, chosen] = bits[:, chosen]
        keys = np.packbits(key, axis=1).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for these in np.split(order, edges) if len(edges) < len(order) - 1 else ():
            if len(these) > 1:
                few = np.sort(these)
                complete, few = len(few) <= CROWD, few[:CROWD]
                left, right = np.triu_indices(len(few), 1)
                close = _count(values[few[left]] ^ values[few[right]]) <= BITS
                yield few[left[close]], few[right[close]], complete


def _count(words: np.ndarray) -> np.ndarray:
    """The number of bits that are set in each uint64."""
    return ONES[words.view(np.uint16).reshape(-1, 4)].sum(1)


ONES = np.unpackbits(np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1).astype(np.uint8)
