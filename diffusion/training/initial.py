"""Fine-tuning: the weights that a run begins with, frozen parts, and learning rates of parts."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from diffusion.nets.embed import ConditionEmbedding
from diffusion.support.console import shown
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.specs import spec, suggest

FEW = 6  # names that a message lists
BELOW = ("denoiser.net.", "net.")  # left out of the names of weights, the first that fits


class Taken(NamedTuple):
    """What a model took from a checkpoint.

    Attributes:
        path: the file.
        names: of the tensors taken whole.
        partly: of the embeddings of classes of which some rows were taken, with numbers.
        kept: of the model's other tensors, which keep their initial values, with the reason.
        unused: of the file's other tensors.
        notes: parts that give the weights another meaning.
    """

    path: Path
    names: list[str]
    partly: dict[str, str]
    kept: dict[str, str]
    unused: list[str]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"initial weights from {shown(self.path)}: {len(self.names)} of "
                 f"{len(self.names) + len(self.partly) + len(self.kept)} tensors"]  # fmt: skip
        lines += [f"  {name}: {words}" for name, words in self.partly.items()]
        lines += [f"  initial, {words}" for words in grouped(self.kept)]
        if self.unused:
            lines.append(f"  not used: {few(self.unused)}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def take(model: pl.LightningModule, path: str | Path, weights: Literal["ema", "raw"] = "ema") -> Taken:
    """Load the tensors of a checkpoint whose names and shapes are the model's.

    The rows of a class embedding are taken by class name, and by number where names are unknown.

    Args:
        path: a run, an experiment, a checkpoint, an exported .safetensors file, or "zoo:NAME".
        weights: averaged (where the run kept an average) or raw.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: it is not one of this project, or no tensor fits.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"--init_weights {weights}: expected ema or raw")
    file = find_checkpoint(path)
    read = read_checkpoint(file)
    if weights == "raw" and read.get("weights", weights) != weights:
        raise ValueError(f"--init {path}: holds the averaged weights only; leave out --init_weights raw")
    theirs = dict(read["state_dict"])
    if weights == "ema":
        theirs.update(read.get("callbacks", {}).get("EMA", {}).get("shadow", {}))
    theirs = {k: v for k, v in theirs.items() if not k.startswith("codec.")}  # a codec belongs to the configuration
    ours = {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.startswith("codec.")}
    classes = {f"{name}.embed.weight" for name, m in model.named_modules() if embeds(m)}
    names = [list(getattr(parts, "get", dict().get)("class_names", None) or ()) for parts in
             (read["hyper_parameters"], model.hparams)]  # fmt: skip
    found = Taken(file, [], {}, {}, [below(k) for k in theirs if k not in ours], changes(read, model))
    with torch.no_grad():
        for name, value in ours.items():
            other = theirs.get(name)
            if other is None:
                found.kept[below(name)] = "not in the file"
            elif name in classes and (value.shape != other.shape or names[0] != names[1]):
                taken_rows(found, below(name), value, other, *names)
            elif value.shape != other.shape:
                found.kept[below(name)] = f"{tuple(value.shape)} here, {tuple(other.shape)} in the file"
            else:
                value.copy_(other)
                found.names.append(below(name))
    if not found.names:
        raise ValueError(f"--init {path}: no tensor has the name and shape of one of this model; {few(list(theirs))}")
    return found


def embeds(module: nn.Module) -> bool:
    """Whether a module is an embedding of classes."""
    return isinstance(module, ConditionEmbedding) and bool(module.num_classes)


def taken_rows(found: Taken, name: str, value: Tensor, other: Tensor, theirs: list[str], ours: list[str]) -> None:
    """Take the rows of the classes that both models have; see `take`."""
    if value.shape[1:] != other.shape[1:] or other.ndim != 2:
        found.kept[name] = f"{tuple(value.shape)} here, {tuple(other.shape)} in the file"
        return
    known = len(ours) == len(value) and len(theirs) == len(other) and set(ours) & set(theirs)
    pairs = [(ours.index(k), theirs.index(k)) for k in ours if k in theirs] if known else [
        (k, k) for k in range(min(len(value), len(other)))]  # fmt: skip
    for mine, its in pairs:
        value[mine] = other[its]
    if len(pairs) == len(value):
        found.names.append(name)
    else:
        found.partly[name] = f"{len(pairs)} of {len(value)} classes, by {'name' if known else 'number'}; others initial"


def changes(read: dict[str, Any], model: pl.LightningModule) -> list[str]:
    """The parts of which the meaning of the network's output or input depends, where they differ."""
    before, now = read["hyper_parameters"], dict(model.hparams)
    pairs = {k: (before.get(k), spec(now.get(k))) for k in ("schedule", "target") if before.get(k) and k in now}
    return [
        f"the file's {k} is {a['class_path'].rpartition('.')[2]}, this model's {b['class_path'].rpartition('.')[2]}; "
        "the weights have another meaning here"
        for k, (a, b) in pairs.items()
        if a["class_path"] != b["class_path"]
    ]


def below(name: str) -> str:
    """The name of a weight within its network."""
    return next((name.removeprefix(p) for p in BELOW if name.startswith(p)), name)


def grouped(kept: dict[str, str]) -> Iterator[str]:
    """One line for each reason."""
    for reason in dict.fromkeys(kept.values()):
        yield f"{reason}: {few([k for k, v in kept.items() if v == reason])}"


def few(names: list[str]) -> str:
    """The first names of a list, and the number of the others."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if names[FEW:] else "")


# --- parts by pattern -----------------------------------------------------------------------------------------


def matching(model: nn.Module, pattern: str, option: str) -> list[nn.Parameter]:
    """The parameters whose name within the network matches a pattern (* and ? as in a shell), or begins with it.

    Raises:
        ValueError: there is none.
    """
    named = {below(name): p for name, p in model.named_parameters()}
    found = [p for name, p in named.items() if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
    if not found:
        parts = list(dict.fromkeys(name.partition(".")[0] for name in named))
        raise ValueError(
            f"--{option} {pattern}: no weight has such a name{suggest(pattern, parts)}; there are: {', '.join(parts)}"
        )
    return found


def freeze(model: nn.Module, patterns: str) -> int:
    """Exclude the parameters that match any of the patterns, separated by commas, from training; their number.

    Raises:
        ValueError: a pattern that matches none, or nothing is left to train.
    """
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        for p in matching(model, pattern, "freeze"):
            p.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"--freeze {patterns}: nothing is left to train")
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def scaled(model: nn.Module, scales: str) -> list[tuple[float, list[nn.Parameter]]]:
    """Learning rates of parts, in units of the model's: "PATTERN=FACTOR", separated by commas; the first match counts.

    Raises:
        ValueError: a pattern that matches none, or a factor that is not a positive number.
    """
    found, seen = [], set()
    for word in filter(None, map(str.strip, scales.split(","))):
        pattern, _, number = word.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if not pattern or not factor > 0:
            raise ValueError(f"--lr_scale {word}: expected PATTERN=FACTOR with a factor > 0, such as condition=10")
        own = [p for p in matching(model, pattern, "lr_scale") if id(p) not in seen]
        seen |= {id(p) for p in own}
        found.append((factor, own))
    return found


def name_teacher(config: Namespace) -> None:
    """Let the teacher of an objective or its path that has no name be the run of `--init`."""
    objective = config.get("model.objective")
    for part in (objective, objective and objective.get("init_args.path")):
        if part and part.get("init_args.teacher") == "":
            part.init_args.teacher = config.get("init") or ""
