"""Which extractor judges a data set: found in the cache, trained if missing, or one that the user points at."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.data import Arrays, ImageData
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.inception import Inception
from diffusion.support import runs
from diffusion.support.paths import REPO, cache_root
from diffusion.support.processes import Processes
from diffusion.support.specs import spec
from diffusion.training.systems import Classifier


def open_extractor(
    data: ImageData,
    wanted: str = "auto",
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
) -> Extractor:
    """The extractor for a data set.

    Args:
        wanted: "auto", a run or checkpoint of a Classifier, or "Inception:FILE".
    Raises:
        ValueError: it is for other images or classes (the message lists the right ones), or it is yet to be trained
            and several processes want it.
    """
    name = type(data).__name__
    if wanted == "auto":
        if not data.class_names:
            raise ValueError(f"{name}: no classes to train a judge on; name one with --features, e.g. Inception:FILE")
        run = folder(data)
        if not processes.agreed(bool(runs.versions(run))):
            if processes.size > 1:
                raise ValueError(f"there is no classifier of {name} yet: run this once in one process, which trains it")
            train(data)
        model = Classifier.load(run, device)
    elif wanted.partition(":")[0] == "Inception":
        model = Inception.load(wanted.partition(":")[2], device)
    else:
        model = Classifier.load(wanted, device)
    extractor = model.extractor()
    if reason := extractor.refuse(name, data.shape, data.class_names):
        raise ValueError(f"--features {wanted}: {reason}; right ones for {name}: {', '.join(right(data))}")
    return extractor


def folder(data: ImageData) -> Path:
    """Where the runs of a data set's own classifier are."""
    return cache_root() / "features" / called(data)


def called(data: ImageData) -> str:
    """A name of a data set: its class, with a fingerprint of the files where these make it."""
    name = type(data).__name__.lower()
    if not isinstance(data, Arrays):
        return name
    files = "|".join(str(Path(file or "").absolute()) for file in (data.images, data.y))
    return f"{name}-{hashlib.sha256(files.encode()).hexdigest()[:8]}"


def train(data: ImageData) -> None:
    """Train the data set's classifier, as `diffusion fit` with its configuration does, on all of its images."""
    from diffusion.training.run import fit  # fit itself asks for extractors

    name = type(data).__name__
    config = REPO / "configs" / f"features_{name.lower()}.yaml"
    config = config if config.exists() else config.with_name("features.yaml")
    chosen = spec(data)
    chosen["init_args"] |= {"limit": 0, "labels": True, "batch_size": 128}
    print(f"no classifier of {name} in {folder(data)} yet: training one (once, minutes)", flush=True)
    options = ["-c", str(config), "--data", json.dumps(chosen), "--experiment", called(data)]
    fit([*options, "--trainer.devices", "1"], final=False)


def right(data: ImageData) -> list[str]:
    """The words after --features that fit a data set."""
    fitting = []
    for run in sorted((cache_root() / "features").glob("*/version_*")):
        try:
            extractor = Classifier.load(run).extractor()
        except (ValueError, OSError):
            continue
        if not extractor.refuse("", data.shape, data.class_names):
            fitting.append(str(run))
    return ["auto", *fitting, *(["Inception:FILE"] if data.channels in (1, 3) else [])]


def open_evaluator(data: ImageData, extractor: Extractor, processes: Processes = Processes()) -> Evaluator:
    """The judge of samples of a data set, its real features cached."""
    train, test = data.arrays("train"), data.arrays("test")
    every = 0.2 if sys.stderr.isatty() else 15
    total = (len(train[0]) + len(test[0])) // processes.size
    options = {"unit": "img", "mininterval": every, "delay": 2, "disable": not processes.first}
    with tqdm(total=total, desc="real images", **options) as bar:
        cache = cache_root() / "references"
        return Evaluator(extractor, type(data).__name__, train, test, cache, bar.update, processes)
