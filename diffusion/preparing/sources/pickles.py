"""Pickled batches of images, as ImageNet-64 and CIFAR come in, read by an unpickler that knows arrays alone."""

import pickle
from pathlib import Path

import numpy as np

from diffusion.support.files import atomic


class Arrays(pickle.Unpickler):
    """An unpickler of plain types and numpy arrays; anything else is refused, so a file cannot run code."""

    def find_class(self, module: str, name: str):
        place = module.removeprefix("numpy._core.").removeprefix("numpy.core."), name
        if place == ("multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if place == ("multiarray", "scalar"):
            return np.float64(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin
        raise pickle.UnpicklingError(f"holds {module}.{name}; only arrays, numbers and text are read")


def _latin(text: str, encoding: str) -> bytes:
    """The bytes that Python 2's strings and protocol 2 store as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def load(path: Path) -> dict[str, object]:
    """The dictionary of a batch, its keys as text.

    Raises:
        ValueError: no pickle of a dictionary of arrays.
    """
    try:
        with open(path, "rb") as file:
            found = Arrays(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"{path}: no pickled batch of arrays, or a damaged one: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted a pickled dictionary with data and labels, got {type(found).__name__}")
    return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in found.items()}


def batch_arrays(path: Path, work: Path) -> list[tuple[str, Path]]:
    """The data and the labels of a batch as .npy files in `work`, by their names."""
    folder = work / "unpacked" / f"{path.name}-{path.stat().st_size}"
    names = [n for n in ("data", "labels", "fine_labels") if (folder / f"{n}.npy").exists()]
    if "data" not in names:  # written last
        batch = load(path)
        names = [n for n in ("fine_labels", "labels", "data") if n in batch]
        if "data" not in names:
            raise ValueError(f"{path}: wanted a batch with data and labels, got {', '.join(batch) or 'nothing'}")
        for name in names:
            with atomic(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, np.asarray(batch[name]))
    return [(name, folder / f"{name}.npy") for name in names]
