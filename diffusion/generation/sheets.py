"""Conditions of pictures and their layout: grids, films, pictures beside their hints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, arange

from diffusion import pictures
from diffusion.denoiser.hints import Paired
from diffusion.generation.pipeline import Pipeline
from diffusion.support.files import atomic


class Given(NamedTuple):
    """The conditions of n pictures.

    Attributes:
        y: labels (n,), contexts (n, D), tokens (n, L) or encoded texts (n, 1 + L, W).
        image: hints (n, K, h, w).
        truth: the images (n, C, H, W) that the hints were derived from.
        same: all pictures have the same noise.
    """

    y: Tensor | None = None
    image: Tensor | None = None
    truth: Tensor | None = None
    same: bool = False


class Opened(NamedTuple):
    """An opened request: the model, n pictures, their conditions, and the columns of a grid (None: a square)."""

    pipeline: Pipeline
    n: int
    given: Given
    columns: int | None


def examples(pipeline: Pipeline, data: Any, n: int, seed: int = 0) -> Given:
    """All classes in turn; for hints, text and vectors that are no classes, those of the first n test images.

    Args:
        data: an `ImageData`, or None.
    Raises:
        ValueError: the model needs a hint, and the data have no `some`.
    """
    named = not pipeline.context_dim or pipeline.class_names and getattr(data, "labelled", True)
    named = named and not pipeline.tokens
    if pipeline.hint is None and (named or not hasattr(data, "some")):
        return Given(pipeline.in_turn(n))
    if not hasattr(data, "some"):
        raise ValueError(f"{type(pipeline.hint).__name__}: no images to derive hints from; the data have no `some`")
    index = arange(n) % len(data.store("test")[0])
    images, y = data.some("test", index)
    truth = pipeline.scaling.encode(images)
    shown = pipeline.shown(truth, range(n), seed, pipeline.pair(data, "test", index))
    return Given(pipeline.condition(y).y, shown, None if shown is None else truth)


def beside(pipeline: Pipeline, results: np.ndarray, given: Given) -> tuple[np.ndarray, int]:
    """Each result (n, H, W, C) uint8 between its hint and its truth, if any; and the number of pictures per result."""
    kinds = [results]
    if given.image is not None:
        shown = pipeline.hint.show(given.image, pipeline.shape)
        same = shown.shape[1] == pipeline.shape[0]  # paired images have bands of their own
        kinds.insert(0, pipeline.picture(shown) if same else pictures.visible(shown))
    if given.truth is not None:
        kinds.append(pipeline.picture(given.truth))
    if len(kinds) > 1:
        kinds = pictures.alike(kinds)
    return np.stack(kinds, axis=1).reshape(-1, *kinds[0].shape[1:]), len(kinds)


def columns_of(pipeline: Pipeline, each: int = 1) -> int | None:
    """Columns of a grid: one per class for 2 to 20 classes, 4 results with their `each` pictures; None is a square."""
    if each > 1:
        return 4 * each
    kinds = pipeline.num_classes or (pipeline.context_dim if pipeline.class_names else 0)
    return kinds if 2 <= kinds <= 20 else None


def denoising(
    pipeline: Pipeline,
    n: int,
    y: Tensor | None = None,
    frames: int = 40,
    seed: int = 0,
    scale: int | None = None,
    columns: int | None = None,
    given: Given | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """The frames of n images from noise to clean, as grids (H', W', C) uint8.

    Args:
        y: labels (n,), contexts (n, D) or tokens (n, L); all classes in turn by default.
        frames: maximum number, spread evenly over the sampler's steps; noise first, the result last.
        scale: integer factor of enlargement; about 320 pixels wide by default.
        columns: pictures per row; a square by default.
        given: y with hints and truths, which are shown beside each image.
        options: sampler and guidance of `Pipeline.frames`.
    """
    given = given or Given(y)
    start = pipeline.start(1, seed).expand(n, -1, -1, -1) if given.same else pipeline.start(n, seed)
    states = [pipeline.picture(start / pipeline.denoiser.schedule.prior_std)]
    for frame in pipeline.frames(n, given.y, seed, image=given.image, same=given.same, **options):
        # Scaled to unit variance: otherwise states of a VE process would saturate.
        states.append(pipeline.picture(frame.x / float(frame.t.alpha**2 + frame.t.sigma**2) ** 0.5))
    chosen = [beside(pipeline, states[k], given) for k in pictures.spread(len(states), frames)]
    each = chosen[0][1]
    columns = columns or (columns_of(pipeline, each) if each > 1 else None)
    # Noise hardly compresses: half the width of a grid keeps the file small.
    return [pictures.grid(state, columns, scale=scale, width=320) for state, _ in chosen]


def save_sheet(
    opened: Opened, images: np.ndarray, out: Path, columns: int, more: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write the images (n, H, W, C) of a request: pictures as a grid (.png), raw ones as an array (.npy, .npz).

    Raw images of more than four channels are (n, C, H, W). A .npz also has their conditions.

    Args:
        more: further arrays of a .npz, by name.
    """
    pipeline, n, given, across = opened
    if out.suffix == ".png":
        shown, each = beside(pipeline, images, given)
        pictures.save_png(pictures.grid(shown, columns * each or across), out)
    elif out.suffix == ".npy":
        with atomic(out) as temporary:
            np.save(temporary, images)
    elif out.suffix == ".npz":
        labels = np.full(n, -1) if given.y is None else given.y.numpy()  # -1: none; contexts are vectors
        kept = {"labels": labels, "class_names": np.array(pipeline.class_names)}
        tokens = pipeline.first.tokens
        if tokens and given.y is not None and not given.y.is_floating_point():
            kept["prompts"] = np.array(tokens.decode(given.y))
        if given.image is not None:
            hint = pipeline.hint
            kept["condition"] = (hint.decode(given.image) if isinstance(hint, Paired) else given.image).numpy()
        if given.truth is not None:
            kept["truth"] = pipeline.in_units(given.truth).numpy()
        with atomic(out) as temporary:
            np.savez_compressed(temporary, images=images, **kept, **more or {})
