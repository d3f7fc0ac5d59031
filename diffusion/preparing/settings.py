"""What `diffusion prepare` is asked for, and the form of the images it writes."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK = 1024  # items of the source per shard
FORMAT = 1  # of the prepared folder
CHOICES = {
    "crop": ("center", "random", "none", "pad"),
    "filter": ("lanczos", "bicubic"),
    "dtype": ("auto", "uint8", "uint16", "float32"),
    "alpha": ("composite", "keep"),
    "layout": ("auto", "NHWC", "NCHW"),
    "duplicates": ("keep", "exact", "drop"),
}
LATER = ("duplicates", "clusters", "test")  # without effect on the shards
NEVER = ("out", "part", "merge", "workers", "ray", "max_bad", "name")  # without effect on the prepared images


class Form(NamedTuple):
    """The form of every stored image."""

    channels: int
    height: int
    width: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def bytes(self) -> int:
        """Bytes of one image."""
        return self.channels * self.height * self.width * np.dtype(self.dtype).itemsize

    @property
    def range(self) -> float:
        """The range of values that pictures of this type have; 0 for floats, whose range has to be measured."""
        return {"uint8": 255.0, "uint16": 65535.0}.get(self.dtype, 0.0)


@dataclass(frozen=True)
class Settings:
    """The words of `diffusion prepare`; see `diffusion.prepare` for their meaning.

    Raises:
        ValueError: a value of a wrong form or out of its range.
    """

    source: str
    out: Path
    size: tuple[int, int] | None = None  # (height, width)
    crop: str = "center"
    filter: str = "lanczos"
    linear: bool = False
    enlarge: bool = False
    channels: int = 0
    dtype: str = "auto"
    alpha: str = "composite"
    background: str = "white"
    label: str = "auto"
    caption: str = "auto"
    targets: tuple[str, ...] = ()
    key: str = ""
    layout: str = "auto"
    duplicates: str = "keep"
    clusters: int = 0
    test: float = 0.1
    max_bad: float = 0.01
    name: str = ""
    part: tuple[int, int] | None = None  # (k, n), k in 1..n
    merge: bool = False
    workers: int = 0
    ray: str = ""

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"--{name}: wanted {', '.join(known)}; got {value!r}")
        if not 0 <= self.test < 1:
            raise ValueError(f"--test: wanted a fraction in [0, 1), e.g. 0.1; got {self.test}")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max_bad: wanted a fraction, e.g. 1% or 0.01; got {self.max_bad}")
        if self.channels not in (0, 1, 3, 4):
            raise ValueError(f"--channels: wanted 1 (grey), 3 (RGB) or 4 (RGBA); got {self.channels}")
        if self.clusters < 0 or self.clusters == 1:
            raise ValueError(f"--clusters: wanted at least 2, or 0 for none; got {self.clusters}")
        if self.workers < 0:
            raise ValueError(f"--workers: wanted a number of processes, 0 for all cores; got {self.workers}")
        if self.merge and self.part:
            raise ValueError("--merge joins finished parts: give it without --part")
        colour(self.background)

    @property
    def words(self) -> dict:
        """What the prepared images depend on, as plain types, in a fixed order."""
        plain = json.loads(json.dumps(asdict(self), default=str))
        for name in NEVER:
            del plain[name]
        return plain

    @property
    def of_shards(self) -> dict:
        """What the shards depend on; the place of the source does not count, since its listing is compared."""
        return {name: value for name, value in self.words.items() if name not in (*LATER, "source")}


def settings(source: str | Path, out: str | Path, **words) -> Settings:
    """Settings from words as they are typed or from Python values.

    Raises:
        ValueError: a value that cannot be read.
    """
    words = {name: value for name, value in words.items() if value is not None}
    for name, read in {"size": size, "max_bad": fraction, "test": fraction, "part": part, "targets": names}.items():
        if name in words:
            words[name] = read(words[name])
    return Settings(source=str(source), out=Path(out).expanduser(), **words)


def size(value: str | int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from 64, "64", "64x96" or a pair."""
    parts = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip()) if isinstance(value, str) else None
    if parts:
        value = int(parts[1]), int(parts[2] or parts[1])
    elif isinstance(value, int):
        value = value, value
    if isinstance(value, str) or len(value) != 2 or not all(1 <= v <= 8192 for v in value):
        said = "wanted one number for a square or HEIGHTxWIDTH, 1 to 8192, e.g. 64 or 64x96"
        raise ValueError(f"--size: {said}; got {value}")
    return int(value[0]), int(value[1])


def fraction(value: str | float) -> float:
    """A fraction from 0.01 or "1%"."""
    text = str(value).strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"wanted a fraction, e.g. 0.01 or 1%; got {value!r}") from None


def part(value: str | tuple[int, int]) -> tuple[int, int]:
    """(k, n) from "3/64"."""
    found = re.fullmatch(r"(\d+)/(\d+)", value.strip()) if isinstance(value, str) else None
    k, n = (int(found[1]), int(found[2])) if found else (0, 0) if isinstance(value, str) else value
    if not 1 <= k <= n:
        raise ValueError(f"--part: wanted K/N with K in 1 .. N, e.g. 3/64; got {value!r}")
    return k, n


def names(value: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names of columns from "a,b" or a sequence."""
    return tuple(n.strip() for n in value.split(",") if n.strip()) if isinstance(value, str) else tuple(value)


def colour(name: str) -> tuple[int, int, int]:
    """A colour by name or as #rrggbb.

    Raises:
        ValueError: there is no such colour.
    """
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(f"--background: wanted a colour, e.g. white, black or #336699; got {name!r}") from None
