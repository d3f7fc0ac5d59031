"""What the figures of a data set suggest: rules that speak or are silent, each a function of the figures."""

from collections.abc import Callable
from dataclasses import dataclass

FEW = 1000
FEW_OF_CLASS = 50
UNEVEN = 10
BARS = 0.04  # of a side
HANDED = 0.3


@dataclass(frozen=True)
class Figures:
    """What the rules look at.

    Args:
        train: images in the train split.
        test: images in the test split.
        classes: images of each class in the train split, by name.
        near: images that equal or nearly equal another one and are in use.
        crossing: copies in the test split of images in the train split.
        bars: fraction of the images with bars above and below, or left and right, but not both.
        handed: how far the mean image of each class is from its mirror image, in units of the spread of the class.
        enlarged: fraction of the images that were enlarged.
        columns: number columns that are not in use.
        refused: fraction of the items that were refused.
        captions: images with a caption.
    """

    train: int
    test: int
    classes: dict[str, int]
    near: int = 0
    crossing: int = 0
    bars: float = 0.0
    handed: dict[str, float] | None = None
    enlarged: float = 0.0
    columns: tuple[str, ...] = ()
    refused: float = 0.0
    captions: int = 0


def few(f: Figures) -> str | None:
    """The training images are few."""
    if f.train < FEW:
        return f"{f.train:,} training images are few: a model may learn them by heart; compare its samples with them"


def few_of_a_class(f: Figures) -> str | None:
    """A class has few training images."""
    rare = [name for name, n in f.classes.items() if n < FEW_OF_CLASS]
    if rare and f.train >= FEW:
        return f"{len(rare)} classes have fewer than {FEW_OF_CLASS} training images, e.g. {rare[0]}"


def uneven(f: Figures) -> str | None:
    """The classes have very different numbers of training images."""
    most, least = max(f.classes.values(), default=0), min(f.classes.values(), default=0)
    if most > UNEVEN * max(1, least):
        large = max(f.classes, key=f.classes.__getitem__)
        small = min(f.classes, key=f.classes.__getitem__)
        return (
            f"the classes are uneven: {large} has {most:,} training images, {small} {least:,}; rare classes will be "
            "learnt worse unless they are drawn more often"
        )


def letterboxed(f: Figures) -> str | None:
    """Images have bars at opposite sides."""
    if f.bars > 0.1:
        return f"{f.bars:.0%} of the images have bars of one colour at two opposite sides: crop them off before"


def handed(f: Figures) -> str | None:
    """Images differ from their mirror images."""
    found = [name for name, value in (f.handed or {}).items() if value > HANDED]
    if found:
        which = f" of {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found != [""] else ""
        return f"the images{which} differ from their mirror images, as text and digits do: train without flips"


def twins(f: Figures) -> str | None:
    """Images are equal or nearly so."""
    if f.near > 0.02 * (f.train + f.test):
        return f"{f.near:,} images equal or nearly equal another one: --duplicates exact or drop leaves them out"


def leaks(f: Figures) -> str | None:
    """Test images have copies in the train split."""
    if f.crossing:
        return f"{f.crossing:,} test images have a copy in the source's train split: --duplicates drop removes them"


def enlarged(f: Figures) -> str | None:
    """Images were enlarged."""
    if f.enlarged > 0.1:
        return f"{f.enlarged:.0%} of the images were enlarged and are blurred: choose a smaller --size"


def untested(f: Figures) -> str | None:
    """There is no test split."""
    if not f.test:
        return "there is no test split: without one no loss is measured on unseen images"


def numbers(f: Figures) -> str | None:
    """Number columns are not in use."""
    if f.columns:
        return f"number columns are not in use: {', '.join(f.columns)}; --targets {f.columns[0]} conditions on one"


RULES: tuple[Callable[[Figures], str | None], ...] = (
    few, few_of_a_class, uneven, letterboxed, handed, twins, leaks, enlarged, untested, numbers,
)  # fmt: skip


def advice(figures: Figures) -> list[str]:
    """What the rules say."""
    return [said for rule in RULES if (said := rule(figures))]
