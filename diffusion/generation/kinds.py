"""What a model is conditioned on: classes or context features, by number and by name."""

import torch
from torch import Tensor

from diffusion.support.specs import suggest


class Kinds:
    """The classes or context features of a model, one after the other.

    Attributes:
        num_classes: number of classes, 0 for none.
        context_dim: width of the context vectors, 0 for none.
        class_names: names of either, () for none.
    """

    num_classes: int
    context_dim: int
    class_names: tuple[str, ...]

    def number(self, label: int | str) -> int:
        """The index of a class or context feature, given by number or name.

        Raises:
            ValueError: there is no such class, or the model has none.
        """
        kinds = self.num_classes or self.context_dim
        if kinds and label in self.class_names:
            return self.class_names.index(label)
        if kinds and str(label).isdecimal() and int(label) < kinds:
            return int(label)
        if not kinds:
            raise ValueError(f"label {label}: this model was trained without labels")
        names = f" ({', '.join(self.class_names)})" if 0 < len(self.class_names) <= 20 else ""
        near = "" if str(label).isdecimal() else suggest(str(label), list(self.class_names))
        raise ValueError(f"label {label}: labels are 0 .. {kinds - 1}{names}{near}")

    def in_turn(self, n: int, label: int | str | None = None) -> Tensor | None:
        """n labels or one-hot contexts: of one class, by number or name, or cycling through all classes.

        None, "no condition", if the model is unconditional, and by default for context vectors without names.

        Raises:
            ValueError: there is no such label, or the model has none.
        """
        kinds = self.num_classes or self.context_dim
        if label is None and (not kinds or self.context_dim and not self.class_names):
            return None
        y = torch.arange(n) % kinds if label is None else torch.full((n,), self.number(label))
        return torch.eye(kinds)[y] if self.context_dim else y
