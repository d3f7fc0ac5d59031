"""What pictures are asked for on the command line: classes, mixes of them, vectors, and images to start from."""

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.metrics.evaluator import repeated
from diffusion.support.runs import find_checkpoint
from diffusion.training.callbacks.pictures import Given, columns_of, examples
from diffusion.training.systems import Diffusion

EACH = 8  # pictures a row of --each, unless told otherwise


def add_conditions(parser: ArgumentParser, default: str) -> None:
    """The options that say what pictures are of."""
    add = parser.add_argument
    add("--label", help=f"class of all pictures, by number or name (default: {default})")
    add("--labels", help="several classes, one picture each or, with --n, in turn: 0,1,2 or hero,food")
    add(
        "--context", action="append", default=[], metavar="MIX",
        help="hero=1,food=0.6: a mix of classes; or a .npy file of vectors (N, D). Can be repeated, as --labels",
    )  # fmt: skip


def add_options(parser: ArgumentParser) -> None:
    """The options of the commands that make pictures of nothing but what they are told."""
    add_conditions(parser, "all classes in turn")
    add = parser.add_argument
    add("--each", action="store_true", help=f"a row of --n pictures (default {EACH}) for each class, label or mix")
    add(
        "--image",
        help="what the model is shown beside the noise: a .png, a .npy or .npz of uint8 (N, H, W, C), or 'test' for "
        "the run's test images",
    )


def ask(model: Diffusion, args: Namespace, default: int, data_options: list[str]) -> tuple[int, Given, int | None]:
    """The number of pictures, what each is asked for by, and the columns of a grid (None: a square).

    Args:
        default: pictures where the command line says nothing of it.
        data_options: options of `diffusion fit` for the data, for --image test.
    Raises:
        ValueError: options that contradict each other, or that the model does not take.
    """
    if args.each and (args.image or model.hint):
        raise ValueError("--each is not for models that are shown an image; give --labels and --n")
    if args.each and args.label is not None:
        raise ValueError("--each makes a row for each of several; give them with --labels, or leave --label out")
    rows = rows_of(model, args)
    if args.each:
        if rows is None:
            rows = model.in_turn(model.num_classes or model.context_dim or 1)
        if rows is None:
            raise ValueError("--each: this model has no classes; give contexts with --context FILE.npy")
        n = args.n or EACH
        return n * len(rows), Given(rows.repeat_interleave(n, dim=0)), n
    beside = model.hint or args.image
    n = args.n or (len(rows) if rows is not None and len(rows) > 1 else min(default, 16) if beside else default)
    y = repeated(rows, n) if rows is not None else None
    if beside:
        given = pictures(model, args, n, data_options)
        return n, given if y is None else given._replace(y=y), columns_of(model, 3 if args.image == "test" else 2)
    several = len(rows) if rows is not None else columns_of(model)
    return n, Given(model.in_turn(n) if y is None else y), several if several and 2 <= several <= 20 else None


def rows_of(model: Diffusion, args: Namespace) -> Tensor | None:
    """The distinct labels (R,) or contexts (R, D) that were asked for, in order; None if none were.

    Raises:
        ValueError: options that contradict each other, or that the model does not take.
    """
    asked = [option for option in ("label", "labels", "context") if getattr(args, option)]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} contradict each other; give one of them")
    if args.context:
        if not model.context_dim:
            takes = "takes class labels, not mixes; use --label" if model.num_classes else "was trained without labels"
            raise ValueError(f"--context: this model {takes}")
        return torch.cat([contexts(model, text) for text in args.context])
    words = [args.label] if args.label is not None else args.labels.split(",") if args.labels is not None else []
    return torch.cat([model.in_turn(1, word.strip()) for word in words]) if words else None


def contexts(model: Diffusion, text: str) -> Tensor:
    """The context vectors (N, D) of one --context: those of a file, or a mix such as hero=1,food=0.6.

    Raises:
        ValueError: not numbers, of another width, or a name that the model does not know.
    """
    if text.endswith(".npy"):
        vectors = np.atleast_2d(array(text))
        if vectors.dtype.kind not in "buif" or vectors.ndim != 2 or vectors.shape[1] != model.context_dim:
            raise ValueError(
                f"--context {text}: wanted numbers (N, {model.context_dim}), got {vectors.dtype} {vectors.shape}"
            )
        if not len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"--context {text}: wanted one finite vector or more")
        return torch.from_numpy(vectors.astype(np.float32))
    vector, seen = torch.zeros(1, model.context_dim), set()
    for part in text.split(","):
        name, _, value = part.partition("=")
        k = model.number(name.strip())
        try:
            vector[0, k] = amount = float(value or 1)
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount):
            raise ValueError(f"--context {text}: wanted a number after {name.strip()}=, got {value!r}")
        if k in seen:
            raise ValueError(f"--context {text}: {name.strip()} is there twice")
        seen.add(k)
    return vector


def array(file: str) -> np.ndarray:
    """The array of a .npy file; of a .npz file the one named `images`, or its only one.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        read = np.load(file, allow_pickle=False)
        return read if isinstance(read, np.ndarray) else read["images" if "images" in read else read.files[0]]
    except (ValueError, EOFError, IndexError) as error:
        raise ValueError(f"{file}: wanted an array of numbers: {error}") from error


def pictures(model: Diffusion, args: Namespace, n: int, data_options: list[str]) -> Given:
    """What --image means for n pictures: hints of test images with their labels, or of a file's pictures in turn.

    Raises:
        ValueError: none was given and the model needs one, or the model takes none, or the file's do not fit.
    """
    if model.hint is None:
        raise ValueError("--image: this model was trained without a hint, so it takes no image")
    kind, (C, H, W) = type(model.hint).__name__, model.shape
    if not args.image:
        raise ValueError(
            f"this model makes {H}x{W} pictures of another image ({kind}): give one with --image FILE, "
            "or --image test for the run's test images"
        )
    if args.image == "test":
        from diffusion.training.run import quiet, recorded  # slow to import, and needed here alone

        quiet()
        data = recorded(find_checkpoint(args.run), data_options).datamodule
        data.prepare_data()
        return examples(model, data, n, args.seed)
    try:
        hint = model.hint.read(read_pictures(args.image, C), model.shape)
    except ValueError as error:
        raise ValueError(f"--image {args.image}: {error}") from error
    return Given(image=repeated(hint, n))


def read_pictures(file: str, channels: int) -> Tensor:
    """Pictures (N, C or C + 1, H, W) in [-1, 1] of a file; a PNG with an alpha channel has it last.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    if Path(file).suffix == ".png":
        with Image.open(file) as picture:
            alpha = "A" if picture.has_transparency_data else ""
            images = np.asarray(picture.convert(("L" if channels == 1 else "RGB") + alpha))[None]
        images = images.reshape(*images.shape[:3], -1)
    elif Path(file).suffix in (".npy", ".npz"):
        images = array(file)
        images = images[None] if images.ndim == 3 else images
    else:
        raise ValueError("wanted a .png, a .npy or a .npz file, or the word test")
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"wanted uint8 (N, H, W, C), got {images.dtype} {images.shape}")
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
