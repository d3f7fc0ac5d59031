"""Pretrained text models of a local folder, by `transformers`: their tokens, and their weights, which stay as they are.

Nothing is downloaded, and no code of a folder is run: weights are read from .safetensors files alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.support.extras import extra
from diffusion.support.files import digest
from diffusion.support.paths import data_root
from diffusion.support.tokens import PAD, SHORTEST, Tokens, shortened

ENCODERS = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}  # by model_type
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")
CONFIGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model")
MOST = 77  # tokens of a text, as CLIP has


@dataclass(frozen=True)
class Pretrained(Tokens):
    """The tokens of a pretrained text model: 0 is no token, 1 + k the model's token k.

    Args:
        words: none; the tokenizer's are in the folder.
        length: tokens L of a text, those that the tokenizer adds included.
        folder: of the model, as `transformers` saves it; a path, or relative to the data root (`support.paths`).
        hash: of its files; others are then rejected.
    """

    folder: str = field(default="", compare=False)
    hash: str = ""

    @classmethod
    def measured(cls, folder: str, texts: Iterable[str | None]) -> Pretrained:
        """The tokens of a folder, as many as the longest text has, between `SHORTEST` and `MOST` or the model's limit.

        Raises:
            ImportError: transformers is not installed.
            FileNotFoundError: there is no such folder, or it lacks files.
            ValueError: it holds another kind of model.
        """
        longest = limit(folder)
        tokenizer = tokenizer_of(folder)
        given = [text for text in texts if text and text.strip()]
        most = max(map(len, tokenizer(given, truncation=True, max_length=longest)["input_ids"])) if given else 0
        return cls((), min(max(most, SHORTEST), longest), folder, hash_of(folder))

    @property
    def plain(self) -> dict[str, Any]:
        return {"length": self.length, "folder": self.folder, "hash": self.hash}

    @property
    def size(self) -> int:
        return 1 + len(self.tokenizer)

    @property
    def described(self) -> str:
        return f"{self.length} tokens of {Path(self.folder).name}, frozen"

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, of transformers."""
        self.checked()
        return tokenizer_of(self.folder)

    def checked(self) -> None:
        """Compare the folder with the recorded hash.

        Raises:
            ValueError: it has changed.
        """
        if self.hash and (now := hash_of(self.folder)) != self.hash:
            raise ValueError(f"{self.folder}: not the text encoder of the training; wanted hash {self.hash}, got {now}")

    def encode(self, texts: Iterable[str | None]) -> Tensor:
        rows = [text or "" for text in texts]
        if not rows:
            return torch.zeros(0, self.length, dtype=torch.int64)
        made = self.tokenizer(rows, truncation=True, max_length=self.length, padding="max_length", return_tensors="pt")
        some = torch.tensor([bool(text.strip()) for text in rows])
        return (made["input_ids"] + 1) * made["attention_mask"] * some[:, None]

    def hint(self, text: str) -> str:
        if not text.strip():
            return self.nothing(text)
        ids = self.tokenizer(text)["input_ids"]
        parts, unknown = [], self.tokenizer.unk_token_id
        special = {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}  # CLIP's unk is its end
        if unknown is not None and unknown not in special and (n := ids.count(unknown)):
            parts.append(f"{n} of its tokens are unknown to the text encoder, which was made for other alphabets")
        parts += self.cut(len(ids))
        return f"{shortened(text)}: {'; '.join(parts)}" if parts else ""

    def decode(self, ids: Tensor) -> list[str]:
        rows = [[k - 1 for k in row if k != PAD] for row in ids.tolist()]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def tokens_of(value: Tokens | Mapping[str, Any] | None) -> Tokens | None:
    """A vocabulary from its plain form, learned from captions or pretrained; None is none.

    Raises:
        ValueError: it is not the plain form of a vocabulary.
    """
    return (Pretrained if isinstance(value, Mapping) and "folder" in value else Tokens).of(value)


def vocabulary_of(captions: Iterable[str | None], folder: str = "") -> Tokens:
    """The tokens of captions: those of a pretrained model's folder, or else learned from the captions."""
    return Pretrained.measured(folder, captions) if folder else Tokens.learned(captions)


def text_model(tokens: Pretrained) -> nn.Module:
    """The frozen text encoder of a folder, float32 on the CPU, in evaluation mode.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such folder, or it lacks files.
        ValueError: another kind of model, or another one than that of the training.
    """
    tokens.checked()
    kind = ENCODERS[kind_of(tokens.folder)]
    return load(tokens.folder, kind)


def kind_of(folder: str) -> str:
    """The model_type of a folder's text encoder.

    Raises:
        ValueError: it is none of `ENCODERS`.
    """
    kind = config_of(folder).model_type
    if kind not in ENCODERS:
        raise ValueError(f"{folder}: wanted a text encoder of the types {', '.join(ENCODERS)}, got {kind!r}")
    return kind


def limit(folder: str) -> int:
    """The most tokens of a text: `MOST`, or the model's own limit if that is lower."""
    kind_of(folder)
    config = config_of(folder)
    config = getattr(config, "text_config", config)
    return min(MOST, getattr(config, "max_position_embeddings", None) or MOST)


def load(folder: str, kind: str) -> nn.Module:
    """The weights of a folder as a class of transformers, frozen, float32 on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks files.
        ValueError: the weights do not fit the class.
    """
    path, transformers = folder_of(folder), library()
    if not any(path.glob("*.safetensors")):
        raise FileNotFoundError(f"{path}: wanted weights as .safetensors, found none; save the model as such")
    with quiet():
        try:
            model, found = getattr(transformers, kind).from_pretrained(
                str(path), local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # safetensors has its own
            raise ValueError(f"{path}: cannot be read as a {kind}: {' '.join(str(error).split())[:200]}") from error
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise ValueError(f"{path}: wanted the weights of a {kind}, but {len(wrong)} are missing, e.g. {wrong[0]}")
    return model.eval().requires_grad_(False)


def tokenizer_of(folder: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no tokenizer.
        ValueError: the tokenizer cannot be read.
    """
    path, transformers = folder_of(folder), library()
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise FileNotFoundError(f"{path}: wanted a tokenizer ({', '.join(TOKENIZERS)}), found none; save it there, too")
    with quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise ValueError(f"{path}: the tokenizer cannot be read: {' '.join(str(error).split())[:200]}") from error


def config_of(folder: str) -> Any:
    """The configuration of a folder's model.

    Raises:
        ValueError: it cannot be read.
    """
    path, transformers = folder_of(folder), library()
    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: its config.json is of no known model: {reason}") from error


def folder_of(folder: str) -> Path:
    """Where a folder is: at its path, or below the data root.

    Raises:
        FileNotFoundError: there is none with a config.json.
    """
    places = (Path(folder).expanduser(), data_root() / folder, data_root() / Path(folder).name)
    for place in places:
        if folder and (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"{folder or 'no folder'}: wanted the folder of a text model with a config.json, as transformers saves it; "
        f"looked there and in {data_root()}"
    )


def hash_of(folder: str) -> str:
    """The hash of a folder's weights, configuration and tokenizer."""
    path = folder_of(folder)
    files = sorted({*path.glob("*.safetensors"), *(path / name for name in CONFIGS if (path / name).is_file())})
    return _hash(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=8)
def _hash(files: tuple[tuple[str, int, int], ...]) -> str:
    return digest(*(Path(name) for name, _, _ in files))[:12]


def library() -> ModuleType:
    """The package transformers.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    return extra("transformers", "text", "a pretrained text model")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages and progress bars of transformers."""
    said = library().utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
