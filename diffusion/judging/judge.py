"""The extractor for a data set: from the cache, trained if missing, or chosen by the user."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.data import Arrays, ImageData, Prepared
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor, load_extractor
from diffusion.metrics.inception import Inception
from diffusion.support import runs
from diffusion.support.paths import CONFIGS, cache_root
from diffusion.support.processes import Processes
from diffusion.support.specs import spec


def open_extractor(
    data: ImageData,
    wanted: str = "auto",
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
    train: Callable[[ImageData], None] | None = None,
) -> Extractor:
    """The extractor for a data set.

    Args:
        wanted: "auto" (the data set's own: a Classifier, or a VICReg where it has no classes), a run or checkpoint of
            either, or "Inception:FILE".
        processes: share the work; every process must call this.
        train: trains the data set's own extractor into `folder(data)` where "auto" finds none; without it, and with
            several processes, a missing extractor is an error.
    Raises:
        ValueError: the extractor is for other images or classes (the message lists those that fit), or does not exist.
    """
    name = type(data).__name__
    if wanted == "auto":
        extractor = load_extractor(own_extractor(data, processes, train), device)
    elif wanted.partition(":")[0] == "Inception":
        if not data.scaling.bounded:
            raise ValueError(f"--features {wanted}: it is of pictures, and images of {name} are {data.scaling.dtype}")
        extractor = Inception.load(wanted.partition(":")[2], device).extractor()
    else:
        extractor = load_extractor(wanted, device)
    if reason := extractor.refuse(name, data.shape, data.class_names):
        raise ValueError(f"--features {wanted}: {reason}; valid for {name}: {', '.join(right(data))}")
    return extractor


def own_extractor(
    data: ImageData, processes: Processes = Processes(), train: Callable[[ImageData], None] | None = None
) -> Path:
    """The folder with the runs of a data set's own extractor, trained if necessary; see `open_extractor`."""
    run = folder(data)
    if processes.agreed(bool(runs.versions(run))):
        return run
    if processes.size > 1:
        raise ValueError(f"{no_extractor(data)}: run this command once in a single process to train it")
    if train is None:
        raise ValueError(f"{no_extractor(data)}; train it with: diffusion fit {shlex.join(recipe(data))}")
    train(data)
    return run


def no_extractor(data: ImageData) -> str:
    """A message that a data set has no extractor of its own."""
    what = "classifier" if data.labelled else "self-supervised features"
    return f"no {what} of {type(data).__name__} in {folder(data)} yet"


def configuration(data: ImageData) -> Path:
    """The configuration file that trains a data set's own extractor."""
    if not data.labelled:
        return CONFIGS / "features_unlabelled.yaml"
    config = CONFIGS / f"features_{type(data).__name__.lower()}.yaml"
    return config if config.exists() else config.with_name("features.yaml")


def recipe(data: ImageData) -> list[str]:
    """The words of `diffusion fit` that train a data set's own extractor on all of its images."""
    chosen = spec(data)
    chosen["init_args"] |= {"limit": 0, "labels": True, "batch_size": 128}
    return ["-c", str(configuration(data)), "--data", json.dumps(chosen), "--experiment", called(data)]


def folder(data: ImageData) -> Path:
    """The folder of the runs of a data set's own extractor."""
    return cache_root() / "features" / called(data)


def called(data: ImageData) -> str:
    """A name for a data set: its class, reduction and variant, and for `Arrays` and `Prepared` a hash of the paths."""
    name = type(data).__name__.lower() + (f"-by{data.reduce}" if data.reduce > 1 else "")
    if isinstance(data, Prepared):
        files = str(data.path.absolute())
        if not data.labelled and (data.facts["classes"] or data.facts["targets"]):
            files += "|unlabelled"  # beside a classifier of the same images
    elif isinstance(data, Arrays):
        files = "|".join(str(Path(file or "").absolute()) for file in (data.images, data.y))
    else:
        return f"{name}-{data.variant}" if data.variant else name
    return f"{name}-{hashlib.sha256(files.encode()).hexdigest()[:8]}"


def right(data: ImageData) -> list[str]:
    """The values of --features that fit a data set."""
    fitting = []
    for run in sorted((cache_root() / "features").glob("*/version_*")):
        try:
            extractor = load_extractor(run)
        except (ValueError, OSError):
            continue
        if not extractor.refuse("", data.shape, data.class_names):
            fitting.append(str(run))
    return ["auto", *fitting, *(["Inception:FILE"] if data.channels in (1, 3) else [])]


def open_evaluator(data: ImageData, extractor: Extractor, processes: Processes = Processes()) -> Evaluator:
    """The evaluator of samples of a data set, with cached features of the real images."""
    train, test = ((copy(images), y) for images, y in map(data.store, ("train", "test")))  # training reads by its own
    every = 0.2 if sys.stderr.isatty() else 15
    total = (len(train[0]) + len(test[0])) // processes.size
    options = {"unit": "img", "mininterval": every, "delay": 2, "disable": not processes.first}
    with tqdm(total=total, desc="real images", **options) as bar:
        cache = cache_root() / "references"
        sets = (train, test, cache, bar.update, processes, data.scaling, data.labelled)
        return Evaluator(extractor, type(data).__name__, *sets)
