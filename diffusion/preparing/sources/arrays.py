"""Arrays of images as sources: .npy, .npz, HDF5, and pickled batches such as ImageNet-64's; read row by row."""

import hashlib
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.preparing.items import Item, Listing, natural
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources.archives import unpacked
from diffusion.preparing.sources.extras import h5
from diffusion.preparing.sources.folders import BATCH
from diffusion.preparing.sources.pickles import batch_arrays

IMAGES = ("images", "image", "x", "data", "imgs", "samples", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "fine_labels", "arr_1")
SPLITS = {"train": 0, "training": 0, "test": 1, "testing": 1, "val": 1, "valid": 1, "validation": 1}


@dataclass
class Array:
    """An array in a file: its name there, its shape and type, and where its rows are."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    place: tuple  # ("row", path) or ("h5", path, key)

    def whole(self) -> np.ndarray:
        """All of it."""
        if self.place[0] == "row":
            return np.load(self.place[1], allow_pickle=False)
        return h5(self.place[1])[self.place[2]][()]


@dataclass
class Rows:
    """The images of one array as a group of items."""

    file: str
    array: Array
    layout: str  # HW, HWC, CHW, or "planes" for flat rows of three planes
    labels: np.ndarray | None
    targets: np.ndarray | None
    split: int | None

    def __len__(self) -> int:
        return self.array.shape[0]

    def items(self, start: int, stop: int) -> Sequence[Item]:
        size = math.prod(self.array.shape[1:]) * self.array.dtype.itemsize
        return [
            Item(
                f"{self.file}#{i}",
                (*self.array.place, i, self.layout),
                size,
                None if self.labels is None else str(self.labels[i]),
                targets=None if self.targets is None else tuple(map(float, self.targets[i])),
                split=self.split,
            )
            for i in range(start, stop)
        ]

    def facts(self) -> object:
        given = [v for v in (self.labels, self.targets) if v is not None]
        values = [hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for v in given]
        return [self.file, list(self.array.shape), str(self.array.dtype), self.layout, self.split, values]


def array_listing(path: Path, name: str, work: Path, settings: Settings) -> Listing:
    """The images in a file of arrays.

    Args:
        name: of the file within the source.
        work: folder for what has to be unpacked.
    Raises:
        ValueError: no array of images, or several of which none was chosen.
    """
    arrays = arrays_of(path, name.rpartition("/")[2], work)
    images = _chosen(arrays, name, settings)
    groups, classes = [], set()
    for array in images:
        split = split_of(array.name) if split_of(array.name) is not None else split_of(name)
        layout = layout_of(array, name, settings)
        labels = _labels(arrays, array, name, settings)
        targets = _targets(arrays, array, name, settings)
        classes.update(() if labels is None else np.unique(labels).tolist())
        groups.append(Rows(name if len(images) == 1 else f"{name}/{array.name}", array, layout, labels, targets, split))
    width = 0 if groups[0].targets is None else groups[0].targets.shape[1]
    columns = settings.targets
    if width != len(columns):
        columns = tuple(f"{settings.targets[0]}.{k}" for k in range(width))
    return Listing(groups, [], tuple(sorted(map(str, classes), key=natural)), columns if width else (), (), "arrays")


def arrays_of(path: Path, name: str, work: Path) -> list[Array]:
    """The arrays of a file, without their contents.

    Args:
        name: of the file; `path` may be an unpacked copy.
    Raises:
        ValueError: it cannot be read.
    """
    kind = Path(name).suffix.lower()
    if kind == ".npy":
        return [_npy(path, Path(name).stem)]
    if kind == ".npz":
        return _npz(path, work)
    if kind in (".h5", ".hdf5", ".he5"):
        file, found = h5(str(path)), []
        file.visititems(lambda key, thing: found.append((key, thing)) if hasattr(thing, "dtype") else None)
        return [Array(key, d.shape, d.dtype, ("h5", str(path), key)) for key, d in found]
    if re.fullmatch(BATCH, name):
        return [_npy(file, key) for key, file in batch_arrays(path, work)]
    raise ValueError(f"{path}: no file of arrays")


def _npy(path: Path, name: str) -> Array:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: wanted a .npy array of numbers: {error}") from error
    return Array(name, array.shape, array.dtype, ("row", str(path)))


def _npz(path: Path, work: Path) -> list[Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m.filename for m in archive.infolist() if m.filename.endswith(".npy")]
            files = [unpacked(path, f"{m}", work, lambda m=m: archive.open(m)) for m in members]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: no .npz file, or a damaged one: {error}") from error
    return [_npy(file, member.removesuffix(".npy")) for file, member in zip(files, members, strict=True)]


def _chosen(arrays: list[Array], name: str, settings: Settings) -> list[Array]:
    """The arrays of images: the one that was asked for, the only one, or one per split."""
    if settings.key:
        chosen = [a for a in arrays if a.name == settings.key]
        if not chosen:
            raise ValueError(f"--key: {name} has no array {settings.key!r}; it has {_names(arrays)}")
        return chosen
    able = [a for a in arrays if len(a.shape) in (3, 4) or _side(a)]
    if len(able) > 1 and all(split_of(a.name) is not None for a in able):
        return able
    usual = [a for a in able if a.name.rpartition("/")[2].lower() in IMAGES]
    chosen = able if len(able) == 1 else usual
    if len(chosen) != 1:
        raise ValueError(f"{name}: wanted one array of images (N, H, W, C); choose one with --key: {_names(arrays)}")
    return chosen


def _names(arrays: list[Array]) -> str:
    return ", ".join(f"{a.name} {a.dtype} {a.shape}" for a in arrays) or "none"


def _side(array: Array) -> int:
    """The side of the square images of flat rows of three planes of bytes; 0 if it is no such array."""
    if len(array.shape) != 2 or array.dtype != np.uint8 or array.shape[1] % 3:
        return 0
    side = math.isqrt(array.shape[1] // 3)
    return side if side >= 8 and 3 * side * side == array.shape[1] else 0


def layout_of(array: Array, name: str, settings: Settings) -> str:
    """How a row of an array is laid out.

    Raises:
        ValueError: the shape fits two layouts.
    """
    if len(array.shape) == 2:
        return "planes"
    if len(array.shape) == 3:
        return "HW"
    if len(array.shape) != 4:
        raise ValueError(f"{name}: shape {array.shape}; wanted (N, H, W, C), (N, C, H, W) or (N, H, W)")
    if settings.layout != "auto":
        return settings.layout[1:]
    first, last = array.shape[1], array.shape[3]
    if first == last:
        raise ValueError(f"{name}: shape {array.shape} may be (N, H, W, C) or (N, C, H, W); say --layout NHWC or NCHW")
    return "HWC" if last < first else "CHW"


def split_of(name: str) -> int | None:
    """The split that a word of a name tells: 0 train, 1 test; None if none does."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[w] for w in words if w in SPLITS), None)


def _labels(arrays: list[Array], images: Array, name: str, settings: Settings) -> np.ndarray | None:
    """The labels (N,) of an array of images: integers or words; rows with a single one are read as classes.

    Raises:
        ValueError: there are none where they were asked for, or they are of another form.
    """
    found = _beside(arrays, images, settings.label, LABELS, ("auto", "none", "folders"))
    if found is None:
        if settings.label not in ("auto", "none", "folders"):
            raise ValueError(f"--label: no array {settings.label!r} with {name}; it has {_names(arrays)}")
        return None
    values = found.whole()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all():
        values = values.argmax(1)
    if values.dtype.kind == "f" and values.ndim == 1 and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.ndim != 1 or len(values) != images.shape[0] or values.dtype.kind not in "biuSU":
        if settings.label == "auto":
            return None
        raise ValueError(f"--label: wanted integers or words ({images.shape[0]},), got {values.dtype} {values.shape}")
    return np.char.decode(values) if values.dtype.kind == "S" else values


def _targets(arrays: list[Array], images: Array, name: str, settings: Settings) -> np.ndarray | None:
    """The numbers (N, D) of an array of images.

    Raises:
        ValueError: an array that was asked for is not there, or is not of numbers.
    """
    columns = []
    for word in settings.targets:
        found = _beside(arrays, images, word, (), ())
        values = None if found is None else found.whole()
        if values is None or values.dtype.kind not in "biuf" or len(values) != images.shape[0]:
            raise ValueError(
                f"--targets: no array {word!r} of {images.shape[0]} rows with {name}; it has {_names(arrays)}"
            )
        columns.append(values.reshape(len(values), -1).astype(np.float64))
    return np.concatenate(columns, 1) if columns else None


def _beside(arrays: list[Array], images: Array, word: str, usual: Sequence[str], none: Sequence[str]) -> Array | None:
    """The array of labels or numbers that belongs to images: by name, by the path of a .npy, or a usual one."""
    if word not in none:
        path = Path(word).expanduser()
        if path.suffix == ".npy" and path.exists():
            return _npy(path, word)
        return next((a for a in arrays if a.name == word), None)
    if word == "none":
        return None
    split = split_of(images.name)
    others = [a for a in arrays if a.name != images.name and a.shape[:1] == images.shape[:1]]
    words = {a.name: {a.name.lower(), *re.split(r"[/_]", a.name.lower())} for a in others if split_of(a.name) == split}
    return next((a for name in usual for a in others if name in words.get(a.name, ())), None)
