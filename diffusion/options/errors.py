"""Errors as one line that says what was wanted, what came, and what to do."""

import errno
import inspect
import re
from importlib import import_module
from typing import get_args, get_type_hints

from diffusion.support import specs
from diffusion.support.specs import concrete, suggest

USER = (ValueError, OSError, ImportError)
MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # which come as RuntimeError
PARSER = ("ArgumentError", "ArgumentTypeError", "NSKeyError", "ParserError")


def explain(error: Exception, command: str = "") -> tuple[str, int]:
    """The line to print, and the exit code: 2 where the input was wrong, 1 where something else broke."""
    kind, text = type(error).__name__, one_line(str(error))
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", text)  # jsonargparse's words around ours
    if kind in PARSER:
        return shorten(text), 2
    if "No supported gpu backend" in text or "can not run on your system" in text:
        return "a GPU was asked for and there is none here; use --trainer.accelerator auto or cpu", 2
    if kind == "MisconfigurationException":
        return text, 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{text}; free some space, or choose another place with --out", 2
    if isinstance(error, USER):
        return text or kind, 2
    if kind in ("OutOfMemoryError", "MemoryError") or any(sign in text for sign in MEMORY):
        return out_of_memory(text, command), 1
    if "gloo" in text and "onnection" in text or "Broken pipe" in text and "TCPStore" in text:
        return "another process of this run has ended; see what that one said", 1
    if kind == "NonFinite":
        return text, 1
    return f"{kind}: {text} (--debug shows where)", 1


def out_of_memory(text: str, command: str) -> str:
    """What did not fit, and what makes it smaller."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)|allocate memory: you tried to allocate (\d+ bytes)", text)
    size = f" (tried to allocate {asked.group(1) or asked.group(2)})" if asked else ""
    if command in ("fit", "demo"):
        remedy = (
            "halve --data.batch_size and double --trainer.accumulate_grad_batches, which takes the same steps; or use "
            "--trainer.precision bf16-mixed, a smaller network, or smaller images"
        )
    elif command == "validate":
        remedy = "use a smaller --data.batch_size, or --trainer.precision bf16-mixed"
    else:
        remedy = "use a smaller --batch_size, which changes no picture"
    return f"out of memory{size}: {remedy}"


def one_line(text: str) -> str:
    """All white space folded."""
    return re.sub(r"\s+", " ", text).strip()


def shorten(text: str) -> str:
    """The heart of one of jsonargparse's nested messages, with the names that would have been right."""
    key = found.group(1) if (found := re.search(r'Parser key "([^"]*)"', text)) else ""
    if found := re.search(r"class_path '([\w.]+)'[^']*(?:Option|Key) '([^']+)' is not accepted", text):
        path, option = found.groups()
        return f"{key}: {path.rpartition('.')[2]} has no option {option!r}" + among(option, arguments(path))
    if found := re.search(r"(?:Key|Option|Nested key) '([^']+)' is not (?:expected|accepted)", text):
        return unknown(found.group(1))
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown(".".join(found.groups()))
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return unknown(found.group(1).partition("=")[0])
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        name, names = found.group(1), classes(key)
        return f"{key}: there is no class {name!r}{suggest(name, names)}; there are: {', '.join(names)}"
    if wanted := re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", text):
        got = found.group(1) if (found := re.search(r"(?:Got value|Given value): (.*?)(?: Subtypes|$)", text)) else "?"
        kinds = " or ".join(dict.fromkeys("nothing" if w == "NoneType" else w for w in wanted))
        return f"{key}: wanted {kinds}, got {got!r}"
    return text


def unknown(option: str) -> str:
    """What to say of an option that no part of the command line knows."""
    name = option.lstrip("-")
    head, _, tail = name.rpartition(".")
    if head not in PARTS and name.partition(".")[0] not in arguments(PARTS[""]):
        head, tail = "", name.partition(".")[0]
    return f"there is no option {option!r}" + among(tail, arguments(PARTS.get(head, "")))


def among(word: str, words: list[str]) -> str:
    """The nearest of the right words, or all of them."""
    near = suggest(word, words)
    return near if near or not words else f"; there are: {', '.join(words)}"


PARTS = {
    "model": "diffusion.training.systems.Diffusion",
    "trainer": "pytorch_lightning.Trainer",
    "ema": "diffusion.training.callbacks.EMA",
    "guard": "diffusion.training.callbacks.Guard",
    "samples": "diffusion.training.callbacks.Samples",
    "gif": "diffusion.training.callbacks.Gif",
    "checkpoint": "diffusion.training.callbacks.Checkpoint",
    "diagnostics": "diffusion.training.callbacks.Diagnostics",
    "evaluation": "diffusion.training.callbacks.Evaluation",
    "model.objective": "diffusion.loss.objective.Objective",
    "": "diffusion.options.errors.top",
}


def top(
    config, system, experiment, out, resume, seed_everything, trainer, model, data, ema, guard, samples, gif,
    checkpoint, diagnostics, evaluation,
):  # fmt: skip
    """The top-level keys of a configuration, as a signature for `arguments`."""


def arguments(path: str) -> list[str]:
    """The argument names of a class or function given by import path."""
    module, _, name = path.rpartition(".")
    if not module:
        return []
    found = getattr(import_module(module), name)
    return list(specs.arguments(found) if inspect.isclass(found) else inspect.signature(found).parameters)


def classes(key: str) -> list[str]:
    """The short names of the classes that a configuration key takes."""
    if key.startswith("data"):
        base = import_module("diffusion.data").ImageData
    elif key.endswith("net"):
        return list(import_module("diffusion.nets").__all__)
    else:
        owner = "diffusion.loss.objective.Objective" if key.startswith("model.objective.") else PARTS["model"]
        module, _, name = owner.rpartition(".")
        base = get_type_hints(getattr(import_module(module), name).__init__).get(key.rpartition(".")[2])
    bases = [b for b in (base, *get_args(base)) if inspect.isclass(b) and b is not type(None)]  # Hint | None
    return sorted(c.__name__ for b in bases for c in concrete(b))
