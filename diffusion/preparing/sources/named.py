"""Data sets of torchvision by name, as sources: torchvision:CIFAR10."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

from PIL import Image

from diffusion.preparing.items import Item, Listing, Refused
from diffusion.preparing.settings import Settings
from diffusion.support.paths import data_root

PREFIX = "torchvision:"
TESTS = ("test", "val", "valid")


@dataclass
class Named:
    """One split of a data set as a group of items."""

    name: str
    words: tuple[tuple[str, object], ...]
    count: int
    split: int | None
    labelled: bool

    def __len__(self) -> int:
        return self.count

    def items(self, start: int, stop: int) -> Sequence[Item]:
        part = {0: "train/", 1: "test/", None: ""}[self.split]
        places = [("torchvision", self.name, self.words, i) for i in range(start, stop)]
        return [
            Item(f"{part}{p[3]}", p, split=self.split, beside=(("torchvision", p),) if self.labelled else ())
            for p in places
        ]

    def facts(self) -> object:
        return [self.name, self.count, self.split]


def named_listing(settings: Settings) -> Listing:
    """A data set of torchvision, downloaded into the data folder if it is not there.

    Raises:
        ValueError: there is no such data set, or it cannot be had.
    """
    name = settings.source.removeprefix(PREFIX)
    sets = import_module("torchvision.datasets")
    if name not in sets.__all__ or not inspect.isclass(getattr(sets, name)):
        raise ValueError(f"{settings.source}: torchvision has no such data set; it has {', '.join(sets.__all__)}")
    takes = inspect.signature(getattr(sets, name)).parameters
    base = {"root": str(data_root())} if "root" in takes else {}
    if "download" in takes:
        base["download"] = True
    splits: list[tuple[int | None, dict]] = [(None, {})]
    if "train" in takes:
        splits = [(0, {"train": True}), (1, {"train": False})]
    elif "split" in takes:
        splits = _splits(getattr(sets, name))
    groups, classes = [], ()
    for split, more in splits:
        try:
            found = _dataset(name, words := tuple(sorted({**base, **more}.items())))
        except Exception as error:  # downloads fail in many ways
            raise ValueError(
                f"{settings.source}: {type(error).__name__}: {error}; put its files into {data_root()}"
            ) from error
        words = tuple((k, v) for k, v in words if k != "download")
        classes = tuple(map(str, getattr(found, "classes", ()) or ()))
        groups.append(Named(name, words, len(found), split, settings.label != "none"))
    return Listing(groups, [], classes, (), (), settings.source)


@lru_cache(maxsize=1)
def sample(name: str, words: tuple, number: int) -> tuple[Image.Image, str | None]:
    """An image and its class, by name where the data set names classes.

    Raises:
        Refused: it is no image, or cannot be read.
    """
    data = _dataset(name, words)
    try:
        found = data[number]
    except Exception as error:  # whatever a data set raises for a damaged file
        raise Refused(f"cannot be read: {error}") from None
    image, label = (found[0], found[1]) if isinstance(found, tuple) else (found, None)
    if not isinstance(image, Image.Image):
        raise Refused(f"is a {type(image).__name__}; only sets of pictures are read")
    classes = getattr(data, "classes", None)
    try:
        label = int(label)
    except (TypeError, ValueError):
        return image, None
    return image, str(classes[label]) if classes and 0 <= label < len(classes) else str(label)


def _splits(kind: type) -> list[tuple[int, dict]]:
    """The train and the test split of a class with an argument `split`."""
    text = f"{inspect.getsource(kind)}"
    test = next((t for t in TESTS if f'"{t}"' in text), "test")
    train = "trainval" if '"trainval"' in text else "train"
    return [(0, {"split": train}), (1, {"split": test})]


@lru_cache(maxsize=2)
def _dataset(name: str, words: tuple):
    return getattr(import_module("torchvision.datasets"), name)(**dict(words))
