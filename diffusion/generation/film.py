"""Films of the denoising of pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion import pictures
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import NAMES, Request
from diffusion.generation.sheets import Opened, denoising
from diffusion.nets.threads import threads_restored
from diffusion.support.files import check_writable

PICTURES = 9  # unless a number is given


def film(
    run: str | Path | Pipeline,
    out: str | Path = "denoising.gif",
    n: int | None = None,
    *,
    frames: int = 40,
    fps: float = 15.0,
    hold: float = 2.0,
    size: int = 0,
    **how: Any,
) -> Path:
    """Film the denoising of a few pictures, and return the file.

    Args:
        run: run directory, experiment folder (its newest run), checkpoint file, or an open pipeline.
        out: file to write; its suffix chooses the format.
        n: pictures, 9 by default.
        frames: maximum number of frames from noise to picture, >= 2.
        fps: frames per second.
        hold: additional seconds for which the last frame is shown.
        size: width of one picture in pixels, rounded to an integer enlargement; 0 makes the film about 320 wide.
        how: conditions and sampling choices: the keywords of `sample`.
    """
    names = {name: how.pop(name) for name in list(how) if name in NAMES}
    write(Request.of(run, how, n=n, **names), Path(out), frames, fps, hold, size)
    return Path(out)


@threads_restored()
def write(
    request: Request, out: Path, frames: int = 40, fps: float = 15.0, hold: float = 2.0, size: int = 0
) -> tuple[Opened, list[np.ndarray]]:
    """Sample and write the film atomically; return the opened request and the frames.

    Raises:
        ValueError: a suffix of no film format, or a number out of range.
    """
    if frames < 2 or size < 0:
        raise ValueError(f"frames must be at least 2 and size at least 0, got {frames} and {size}")
    pictures.check_film(out, fps, hold)
    check_writable(out)
    opened = request.open(PICTURES)
    scale = max(1, round(size / opened.pipeline.shape[2])) if size else None
    columns = opened.columns if request.asked.each else None
    made = denoising(opened.pipeline, opened.n, None, frames, request.seed, scale, columns, opened.given)
    pictures.save_film(made, out, fps, hold)
    return opened, made
