"""Labels: the numbers of classes and context features."""

from collections.abc import Sequence

from diffusion.support.specs import suggest


def number(label: int | str, kinds: int, names: Sequence[str]) -> int:
    """The index of a class or context feature, given by number or name.

    Args:
        kinds: how many there are.
        names: of them, if they have any.
    Raises:
        ValueError: there is no such one, or there are none at all.
    """
    if kinds and label in names:
        return list(names).index(label)
    if kinds and str(label).isdecimal() and int(label) < kinds:
        return int(label)
    if not kinds:
        raise ValueError(f"label {label}: this model was trained without labels")
    known = f" ({', '.join(names)})" if 0 < len(names) <= 20 else ""
    near = "" if str(label).isdecimal() else suggest(str(label), list(names))
    raise ValueError(f"label {label}: labels are 0 .. {kinds - 1}{known}{near}")
