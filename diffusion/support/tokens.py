"""Tokens: text as rows of integers, by the words of a training set and bytes for everything else."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

PAD, BYTES = 0, 256  # ids: 0 is no token, 1 + b a byte b, 257 + k the k-th word
MOST, LONGEST = 4096, 64  # words of a vocabulary; tokens of a text
SHORTEST = 8
PIECE = re.compile(r"[^\W_]+|[^\w\s]|_")


class Encoded(NamedTuple):
    """Texts as tokens (N, L) int64, and a hint for each text that is not read as it stands."""

    ids: Tensor
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Tokens:
    """A vocabulary, and the number of tokens of a text.

    Text is split into words and signs, in lower case (Unicode NFC). A word or sign of the vocabulary is one token;
    another one is spelled: a token per byte of its UTF-8, after that of a blank. So every text in every alphabet has
    tokens, and only those of the vocabulary mean what they meant in training.

    Args:
        words: the vocabulary, the most frequent first.
        length: tokens L of a text; shorter ones are padded with 0, the rest of longer ones is not read.
    Raises:
        ValueError: words that are not different, or length < 1.
    """

    words: tuple[str, ...] = ()
    length: int = LONGEST

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        if len(set(self.words)) < len(self.words) or self.length < 1:
            raise ValueError(f"Tokens: wanted different words and a length of at least 1, got length {self.length}")

    @classmethod
    def of(cls, value: Tokens | Mapping[str, Any] | None) -> Tokens | None:
        """A vocabulary from its plain form; None is none.

        Raises:
            ValueError: it is not the plain form of a vocabulary.
        """
        try:
            return value if isinstance(value, Tokens | None) else cls(**value)
        except TypeError as error:
            raise ValueError(f"tokens: {error}") from error

    @classmethod
    def learned(cls, texts: Iterable[str | None]) -> Tokens:
        """The vocabulary of training texts: every word and sign that at least two of them have, at most `MOST`.

        The most frequent are first, in the order of their characters where equally frequent. The length is that of the
        longest text, between `SHORTEST` and `LONGEST`.
        """
        counts, split = Counter(), []
        for text in texts:
            split.append(pieces(text or ""))
            counts.update(set(split[-1]))
        usual = sorted((-count, word) for word, count in counts.items() if count > 1)
        made = cls(tuple(word for _, word in usual[:MOST]))
        longest = max((len(made._ids(words)) for words in split), default=0)
        return cls(made.words, min(max(longest, SHORTEST), LONGEST))

    @property
    def plain(self) -> dict[str, Any]:
        """The arguments, in plain types."""
        return {"words": list(self.words), "length": self.length}

    @property
    def size(self) -> int:
        """The number of different tokens, the padding included."""
        return 1 + BYTES + len(self.words)

    @property
    def described(self) -> str:
        """The vocabulary in a few words."""
        return f"{len(self.words):,} words, {self.length} tokens"

    @cached_property
    def _place(self) -> dict[str, int]:
        return {word: 1 + BYTES + k for k, word in enumerate(self.words)}

    def _ids(self, words: Sequence[str]) -> list[int]:
        found = []
        for word in words:
            known = self._place.get(word)
            found += [known] if known else [1 + b for b in f" {word}".encode("utf-8", "surrogatepass")]
        return found

    def encode(self, texts: Iterable[str | None]) -> Tensor:
        """Texts as tokens (N, L) int64, without hints; None is an empty text."""
        rows = [self._ids(pieces(text or ""))[: self.length] for text in texts]
        return torch.tensor([row + [PAD] * (self.length - len(row)) for row in rows]).reshape(len(rows), self.length)

    def read(self, texts: Sequence[str]) -> Encoded:
        """Prompts as tokens, with one-line hints: unknown words, texts that are cut or empty.

        Raises:
            ValueError: a prompt is no text.
        """
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"prompt: wanted a text, got {wrong[0]!r}; give prompts as strings")
        return Encoded(self.encode(texts), tuple(hint for text in texts if (hint := self.hint(text))))

    def hint(self, text: str) -> str:
        """What of a prompt is not read as it stands, in one line; "" if all of it is."""
        words = pieces(text)
        if not words:
            return self.nothing(text)
        parts = []
        if unknown := list(dict.fromkeys(word for word in words if word not in self._place)):
            near = [get_close_matches(word, self.words, n=1) for word in unknown[:3]]
            names = ", ".join(
                f"{word[:20]!r}{'...' if len(word) > 20 else ''}{f' (like {match[0][:20]!r}?)' if match else ''}"
                for word, match in zip(unknown, near, strict=False)
            )
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            some = ", ".join([word for word in self.words if 2 < len(word) <= 20][:12])
            usual = f"; frequent ones are {some}" if some else ""
            parts.append(f"not among the words of training: {names}{more}{usual}")
        parts += self.cut(len(self._ids(words)))
        return f"{shortened(text)}: {'; '.join(parts)}" if parts else ""

    def nothing(self, text: str) -> str:
        """The hint of a text without words."""
        return f"{shortened(text)}: no words, so the pictures are of anything (the model without a condition)"

    def cut(self, n: int) -> list[str]:
        """The hint of a text of n tokens, if that is more than are read."""
        if n <= self.length:
            return []
        return [f"{n} tokens, of which the first {self.length} are read; say it in fewer words"]

    def decode(self, ids: Tensor) -> list[str]:
        """The texts of tokens (N, L), in lower case, with a blank between words and signs."""
        return [self._text(row) for row in ids.tolist()]

    def _text(self, row: Sequence[int]) -> str:
        found, spelled = [], b""
        for k in [*row, PAD]:
            if 0 < k <= BYTES:
                spelled += bytes([k - 1])
                continue
            found += spelled.decode(errors="replace").split()
            spelled = b""
            found += [self.words[k - BYTES - 1]] if k else []
        return " ".join(found)


def pieces(text: str) -> list[str]:
    """The words and signs of a text, in order: lower case, NFC."""
    return PIECE.findall(unicodedata.normalize("NFC", text.lower()))


def shortened(text: str) -> str:
    """The beginning of a prompt, for a hint."""
    return f"prompt {text[:40]!r}{'...' if len(text) > 40 else ''}"
