"""`diffusion.export`: a trained model in the format of another program."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffusion.exchange.exporting.facts import Source
from diffusion.exchange.exporting.native import write_native
from diffusion.exchange.exporting.onnx_file import Difference, Storage, write_onnx
from diffusion.generation.choices import Choices
from diffusion.generation.pipeline import Pipeline
from diffusion.support.files import check_writable
from diffusion.support.specs import suggest

FORMATS = {
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "page": ".html",
    "diffusers": "",
}  # with the suffix that chooses it


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: the files, or the folder.
        format: of FORMATS.
        source: the model.
        difference: the error that the storage of the weights causes, if any.
        notes: what a reader of the files should know, a sentence each.
    """

    files: list[Path]
    format: str
    source: Source
    difference: Difference | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        found = [f for path in self.files for f in (path.rglob("*") if path.is_dir() else [path])]
        return sum(f.stat().st_size for f in found if f.is_file())


def export(
    run: str | Path | Pipeline,
    to: str | Path,
    *,
    format: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    precision: Literal["32", "bf16", "fp16"] = "32",
    storage: Storage = "fp32",
    arguments: Mapping[str, Any] | None = None,
    **choices: Any,
) -> Exported:
    """Export a model, as `diffusion export` does: all files are written, or none.

    Args:
        run: run directory, experiment folder (its newest run), checkpoint file, or an open pipeline.
        to: x.safetensors (and x.json), x.onnx, x.html, or a folder for diffusers.
        format: of FORMATS; by default the suffix decides.
        weights: averaged or raw.
        precision: of the weights in a .safetensors file.
        storage: of the weights in an .onnx or .html file.
        choices: sampler, steps, guidance, scale, ...: the defaults of the exported model, see `Choices`.
        arguments: further arguments of that sampler and guidance.
    Raises:
        FileNotFoundError: there is no checkpoint.
        ConnectionError: the runtime of a page cannot be downloaded.
        ImportError: a package of the extra `export` is missing.
        ValueError: the format cannot express this model, for the reason given, or an option does not apply to it.
    """
    to = Path(to).expanduser()
    format = format_of(to, format)
    if unknown := choices.keys() - {f.name for f in fields(Choices)}:
        raise TypeError(f"export: unknown argument {min(unknown)!r}; arguments of the sampler go into `arguments`")
    if precision != "32" and format != "safetensors":
        raise ValueError(
            f"--precision {precision} is an option of .safetensors; for .onnx and .html give --storage fp16"
        )
    if storage != "fp32" and format not in ("onnx", "page"):
        raise ValueError(
            f"--storage {storage} is an option of .onnx and .html; for .safetensors give --precision fp16 or bf16"
        )
    if format == "diffusers":
        from diffusion.exchange.exporting.diffusers_folder import write_folder

        refuse_folder(to)
        source = Source.open(run, weights, Choices(**choices, arguments=arguments or {}), format)
        return Exported([to], format, source, notes=write_folder(source, to))
    check_writable(to)
    source = Source.open(run, weights, Choices(**choices, arguments=arguments or {}), format)
    if format == "onnx":
        files, difference = write_onnx(source, to, storage)
        return Exported(files, format, source, difference)
    if format == "page":
        from diffusion.exchange.exporting.page_file import write_page

        files, difference, notes = write_page(source, to, storage)
        return Exported(files, format, source, difference, tuple(notes))
    return Exported(write_native(source, to, precision), format, source)


def format_of(to: Path, format: str | None) -> str:
    """The format by name, or by the suffix of the path.

    Raises:
        ValueError: an unknown format, or a suffix that is not the format's.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}{suggest(format, list(FORMATS))}; there are: {', '.join(FORMATS)}")
    known = {suffix: name for name, suffix in FORMATS.items() if suffix}
    found = format or known.get(to.suffix, "" if to.suffix and not to.is_dir() else "diffusers")
    if not found:
        raise ValueError(f"--to {to}: wanted {', '.join(known)}, or a folder for diffusers (--format diffusers)")
    if FORMATS[found] and to.suffix != FORMATS[found]:
        raise ValueError(f"--to {to}: a file of the format {found} ends in {FORMATS[found]}")
    return found


def refuse_folder(to: Path) -> None:
    """Check that a folder can be created.

    Raises:
        ValueError: it exists with other files in it.
        OSError: it cannot be created.
    """
    if to.is_file() or to.is_dir() and any(to.iterdir()):
        raise ValueError(f"--to {to}: exists and is not an empty folder; give a new one")
    check_writable(to / "x" if to.is_dir() else to.with_name(f"{to.name}.x"))
