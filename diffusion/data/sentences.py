"""Sentences about the pictures of `scenes`: a small grammar whose choices are functions of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from diffusion.data.scenes import ATTRIBUTES, VALUES, uniform

OMITTED = 0.15  # share of the sentences without an attribute, for each that is neither the kind nor the colour
OPENINGS = ("", "", "", "", "", "a picture of ", "pixel art of ", "a sprite of ", "a drawing of ")
NOUNS = {"slime": ("slime", "blob of slime"), "ghost": ("ghost",), "cat": ("cat",), "fish": ("fish",),
         "mushroom": ("mushroom", "toadstool"), "wizard": ("wizard", "mage")}  # fmt: skip
METAL = {"iron": ("iron",), "gold": ("gold", "golden"), "copper": ("copper",)}
FLASK = ("flask", "bottle")
LOOKS, POINTS = ("facing", "looking", "turned to the"), ("pointing", "with its tip to the")
DRAWS = 16  # uniform numbers per sentence
Draw = Callable[[Sequence[str]], str]


def sentence(told: Mapping[str, str], pick: Draw = lambda options: options[0]) -> str:
    """A sentence that names attributes by name and value; `kind` and `colour` are required.

    Args:
        pick: chooses one of several ways to say the same; the first of each by default.
    """
    kind, colour = told["kind"], told["colour"]
    metal = pick(METAL[told["material"]]) if "material" in told else ""
    shape, side = told.get("shape", ""), told.get("pose", "")
    if kind == "potion":
        flask = pick(FLASK)
        if not shape:
            head, tails = f"{colour} potion", []
        elif pick(("in", "of")) == "in":
            head, tails = f"{colour} potion", [f"in a {shape} {flask}"]
        else:
            head, tails = f"{shape} {flask} of {colour} potion", []
    elif kind == "sword":
        head, tails = joined(metal, "sword"), [f"with {article(colour)} {pick(('hilt', 'handle'))}"]
    elif kind == "shield":
        shape = {"kite": "kite-shaped"}.get(shape, shape)
        head = joined(*((shape, colour) if pick("ab") == "a" else (colour, shape)), "shield")
        tails = [f"with {article(metal)} {pick(('rim', 'edge'))}"] if metal else []
    elif kind == "ring":
        head, tails = joined(metal, "ring"), [f"with {article(colour)} {pick(('gem', 'stone'))}"]
    elif kind == "knight":
        head, tails = pick((f"knight in {colour}", f"{colour} knight")), []
        item = told.get("item", "")
        item = joined(told.get("second", ""), item) if item else ""
        tails += [f"with {article(item)}"] if item else []
        tails += [f"in {metal} armour" if pick("ab") == "a" else f"with {article(metal)} helmet"] if metal else []
    elif kind == "wizard":
        noun = pick(NOUNS[kind])
        head = pick((f"{noun} in {colour}", f"{colour} {noun}", f"{noun} in {article(colour)} robe"))
        tails = [f"with {article(told['second'])} staff"] if "second" in told else []
    else:
        head, tails = f"{colour} {pick(NOUNS[kind])}", []
    tails += [f"{pick(POINTS if kind == 'sword' else LOOKS)} {side}"] if side else []
    return article(head) + "".join(f"{pick((', ', ' '))}{tail}" if k else f" {tail}" for k, tail in enumerate(tails))


def joined(*words: str) -> str:
    """The words that are not empty, with blanks between."""
    return " ".join(word for word in words if word)


def article(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def named(row: Sequence[int] | np.ndarray) -> dict[str, str]:
    """The attributes of a picture that apply, by name and value, from a row of `scenes.attributes`."""
    return {name: VALUES[name][k - 1] for name, k in zip(ATTRIBUTES, row, strict=True) if k}


def captions(
    table: np.ndarray, index: Sequence[int] | np.ndarray, seed: int = 0, omitted: float = OMITTED
) -> list[str]:
    """Varied sentences about pictures with attributes (N, 7).

    Args:
        omitted: share of the sentences that leave out an attribute, for each that is neither the kind nor the colour.
    """
    u = uniform(seed, np.asarray(index), DRAWS + len(ATTRIBUTES), stream=2)
    return [_caption(named(row), numbers, omitted) for row, numbers in zip(table, u, strict=True)]


def _caption(told: dict[str, str], numbers: np.ndarray, omitted: float) -> str:
    always = ("kind", "colour")
    told = {
        name: value
        for name, value in told.items()
        if name in always or numbers[DRAWS + ATTRIBUTES.index(name)] >= omitted
    }
    draws = iter(numbers)
    opening = OPENINGS[int(next(draws) * len(OPENINGS))]
    return opening + sentence(told, lambda options: options[int(next(draws) * len(options))])
