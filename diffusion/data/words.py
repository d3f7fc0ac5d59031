"""Words of captions as conditions: a small vocabulary, and one vector of 0 and 1 for each caption."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOST = 128  # words of a vocabulary
COMMON = 0.95  # share of the captions above which a word distinguishes too little
RARE = 0.001  # share of the captions below which it is too rare to learn, as is a word of a single caption


class Letters(dict):
    """A table for `str.translate` that keeps letters, their marks and digits, and turns the rest into spaces."""

    def __missing__(self, code: int) -> int:
        self[code] = kept = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return kept


LETTERS, ASCII = Letters(), re.compile(r"[a-z0-9]+")


def words_of(caption: str) -> set[str]:
    """The different words of a caption: runs of Unicode letters and digits (NFC), in lower case."""
    if caption.isascii():  # the same, in a fifth of the time
        return set(ASCII.findall(caption.lower()))
    parts = unicodedata.normalize("NFC", caption.lower()).translate(LETTERS).split()
    return {part for part in parts if any(map(str.isalnum, part))}  # no marks alone, as of an emoji


def vocabulary(captions: Iterable[str | None]) -> tuple[str, ...]:
    """At most `MOST` words of captions, the most frequent first, in alphabetical order where equally frequent.

    A word counts once per caption. Words of one caption only, of less than `RARE` or of more than `COMMON` of the
    captions are left out. Missing and empty captions do not count.
    """
    counts, n = Counter(), 0
    for caption in captions:
        if found := words_of(caption or ""):
            counts.update(found)
            n += 1
    usual = [(-count, word) for word, count in counts.items() if max(2, RARE * n) <= count <= COMMON * n]
    return tuple(word for _, word in sorted(usual)[:MOST])


def multi_hot(captions: Iterable[str | None], words: tuple[str, ...], n: int) -> Tensor:
    """Vectors (n, len(words)) float32 of n captions: 1 for each word that a caption has; zeros without a caption."""
    vectors, place = np.zeros((n, len(words)), np.float32), {word: k for k, word in enumerate(words)}
    for vector, caption in zip(vectors, captions, strict=True):
        vector[[place[word] for word in words_of(caption or "") if word in place]] = 1
    return torch.from_numpy(vectors)


def captions(file: Path, chosen: np.ndarray) -> Iterator[str | None]:
    """The captions of some images in a captions.jsonl, one at a time.

    Args:
        chosen: (N,) bool, for each image of the folder whether its caption is wanted.
    Raises:
        ValueError: the file is missing, damaged, or has another number of lines.
    """
    lines = 0
    try:
        with open(file, encoding="utf-8") as read:
            for lines, line in enumerate(read, 1):
                if lines <= len(chosen) and chosen[lines - 1]:
                    caption = json.loads(line)
                    if not isinstance(caption, str | None):
                        raise ValueError(f"line {lines}: wanted a text or null, got {line.strip()[:40]}")
                    yield caption
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}; prepare the folder again") from error
    if lines != len(chosen):
        raise ValueError(f"{file}: {lines:,} lines for {len(chosen):,} images; prepare the folder again")
