"""Errors as one line that says what was wanted, what came, and what to do."""

import errno
import re

USER = (ValueError, OSError, ImportError)
MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # which come as RuntimeError


def explain(error: Exception, command: str = "") -> tuple[str, int]:
    """The line to print, and the exit code: 2 where the input was wrong, 1 where something else broke."""
    kind, text = type(error).__name__, one_line(str(error))
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", text)  # jsonargparse's words around ours
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
