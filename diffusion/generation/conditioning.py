"""What a pipeline is conditioned on: classes by name or number, contexts, text, hints."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.hints import Hint, Paired
from diffusion.guidance import Guidance
from diffusion.noise.draws import ImageDraws, seed_of
from diffusion.support.console import Notice
from diffusion.support.specs import suggest
from diffusion.support.tokens import Tokens

HINTS = 3  # key of the random stream that hints are drawn from


class PromptWarning(Notice):
    """A prompt is not read as it stands: it has unknown words, is too long, or is empty."""


class Conditioning:
    """The conditions of a `Pipeline`, from the fields that it has."""

    denoiser: Denoiser
    guidance: Guidance
    hint: Hint | None
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    seed: int

    @property
    def num_classes(self) -> int:
        """Number of classes that the network, or else the guidance, is conditioned on; 0 for none."""
        return self.denoiser.num_classes or (0 if self.denoiser.conditional else self.guidance.num_classes)

    @property
    def context_dim(self) -> int:
        """Width of the context vectors that the network is conditioned on; 0 for none."""
        return self.denoiser.context_dim

    @property
    def tokens(self) -> Tokens | None:
        """The vocabulary of the text that the network is conditioned on; None without text."""
        return self.denoiser.tokens

    @property
    def conditional(self) -> bool:
        """Whether pictures have a condition y: classes, contexts or text."""
        return bool(self.num_classes or self.context_dim or self.tokens)

    def condition(self, y: Tensor | None, image: Tensor | None = None) -> Condition:
        """The condition of a batch; labels are dropped for an unconditional model."""
        return Condition(y if self.conditional else None, image=image)

    def shown(
        self, x0: Tensor, numbers: Sequence[int], seed: int | None = None, pair: Tensor | None = None
    ) -> Tensor | None:
        """The hints of images x0 (B, C, H, W), drawn by (seed, image number); None without hints.

        Args:
            pair: the scaled paired images of x0, see `pair`.
        Raises:
            ValueError: the model takes paired images, and there are none.
        """
        if self.hint is None:
            return None
        if isinstance(self.hint, Paired):
            if pair is None:
                raise ValueError("Paired: the data have no paired images; give them with --data.condition FILE")
            return self.hint.fit(pair, self.shape)
        return self.hint(x0, ImageDraws(seed_of(self.seed if seed is None else seed, HINTS), numbers))

    def pair(self, data: Any, split: str, index: Tensor) -> Tensor | None:
        """The scaled paired images of some images of a data set; None if the model or the data have none."""
        store = data.pairs(split) if isinstance(self.hint, Paired) and hasattr(data, "pairs") else None
        return None if store is None else self.hint.encode(store.take(index))

    def number(self, label: int | str) -> int:
        """The index of a class or context feature, given by number or name; see the function `number`."""
        return number(label, self.num_classes or self.context_dim, self.class_names, self.tokens is not None)

    def prompts(self, texts: str | Sequence[str], between: int = 0) -> Tensor:
        """Prompts as conditions y (R, ...); see the function `prompts`."""
        return prompts(self.denoiser, texts, between)

    def in_turn(self, n: int, label: int | str | None = None) -> Tensor | None:
        """n labels or one-hot contexts: of one class, by number or name, or cycling through all classes.

        None, "no condition", if the model is unconditional, and by default for context vectors without names; empty
        prompts by default for a model of text.

        Raises:
            ValueError: there is no such label, or the model has none.
        """
        if self.tokens is not None and label is None:
            return self.tokens.encode([""] * n)
        kinds = self.num_classes or self.context_dim
        if label is None and (not kinds or self.context_dim and not self.class_names):
            return None
        y = torch.arange(n) % kinds if label is None else torch.full((n,), self.number(label))
        return torch.eye(kinds)[y] if self.context_dim else y


def number(label: int | str, kinds: int, names: Sequence[str], text: bool = False) -> int:
    """The index of a class or context feature, given by number or name.

    Args:
        kinds: how many there are; 0 for a model without.
        names: their names.
        text: whether the model is conditioned on text.
    Raises:
        ValueError: there is no such class, or the model has none.
    """
    if kinds and label in names:
        return list(names).index(label)
    if kinds and str(label).isdecimal() and int(label) < kinds:
        return int(label)
    if not kinds:
        raise ValueError(
            f"label {label}: this model was trained {'with captions; use prompt' if text else 'without labels'}"
        )
    known = f" ({', '.join(names)})" if 0 < len(names) <= 20 else ""
    near = "" if str(label).isdecimal() else suggest(str(label), list(names))
    raise ValueError(f"label {label}: labels are 0 .. {kinds - 1}{known}{near}")


def prompts(denoiser: Denoiser, texts: str | Sequence[str], between: int = 0) -> Tensor:
    """Prompts as conditions: tokens (R, L), or with `between` the network's outputs for texts (R, 1 + L, W).

    Args:
        texts: one prompt, or several.
        between: number of conditions from each prompt to the next, both included; 0 for the prompts alone. The
            outputs of the text encoder are interpolated linearly.
    Raises:
        ValueError: the model was trained without text, a prompt is no text, or there is nothing to interpolate.
    Warns:
        PromptWarning: of each prompt that is not read as it stands.
    """
    if denoiser.tokens is None:
        raise ValueError("prompt: this model was trained without captions; use label or context, or no condition")
    texts = [texts] if isinstance(texts, str) else list(texts)
    ids, hints = denoiser.tokens.read(texts)
    for hint in hints:
        warnings.warn(hint, PromptWarning, stacklevel=3)
    if not between:
        return ids
    if len(texts) < 2 or between < 2:
        raise ValueError(f"between: wanted two prompts or more and at least 2 pictures, got {len(texts)} and {between}")
    if getattr(denoiser.net, "text", None) is None:
        raise ValueError("between: the text encoder is a part of the ONNX graph; use the run itself with engine torch")
    with torch.no_grad():
        ends = denoiser.encoded(ids.to(next(denoiser.parameters()).device)).cpu()
    u = torch.linspace(0, 1, between)[:, None, None]
    return torch.cat([torch.lerp(a, b, u) for a, b in zip(ends[:-1], ends[1:], strict=True)])


def repeated(rows: Tensor, n: int) -> Tensor:
    """The first n of rows (R, ...), repeated cyclically if there are fewer."""
    return rows[torch.arange(n) % len(rows)]
