"""Pictures: model tensors to 8-bit images, grids, PNG files and GIFs."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion.tools import atomic


def to_uint8(x: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C): (x + 1) / 2 clamped, times 255, rounded.

    Never scaled by an image's own extremes, which would change colours between images.
    """
    x = ((x.detach().float().cpu() + 1) / 2).clamp(0, 1) * 255
    return x.round().byte().permute(0, 2, 3, 1).numpy()


def grid(
    images: np.ndarray, columns: int | None = None, pad: int = 1, scale: int | None = None, width: int = 640
) -> np.ndarray:
    """One picture of many, row by row: uint8 (N, H, W, C) -> (H', W', C).

    Args:
        columns: images a row; the square root of N, rounded up, by default.
        pad: mid-grey pixels between images, before enlarging.
        scale: whole factor of enlargement by nearest neighbour; by default what makes the picture about `width` wide.
        width: pixels.
    """
    N, H, W, C = images.shape
    columns = min(columns or math.ceil(math.sqrt(N)), N)
    rows = math.ceil(N / columns)
    sheet = np.full((rows * (H + pad) + pad, columns * (W + pad) + pad, C), 128, np.uint8)
    for k, image in enumerate(images):
        top, left = pad + k // columns * (H + pad), pad + k % columns * (W + pad)
        sheet[top : top + H, left : left + W] = image
    return enlarge(sheet, scale or max(1, round(width / sheet.shape[1])))


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Nearest-neighbour enlargement of (H, W, C) by a whole factor."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def pillow(image: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 with 1, 3 or 4 channels as a Pillow image; of any other number the first is shown."""
    return Image.fromarray(image if image.shape[-1] in (3, 4) else image[..., 0])


def save_png(image: np.ndarray, path: str | Path) -> Path:
    """Write (H, W, C) uint8 as a PNG, whole or not at all."""
    with atomic(Path(path)) as temporary:
        pillow(image).save(temporary, format="PNG")
    return Path(path)


def abreast(films: Sequence[Sequence[np.ndarray]], pad: int = 8) -> list[np.ndarray]:
    """Films of one height side by side, the shorter ones slowed down to the longest: frames (H, W, C) uint8."""
    n, frames = max(map(len, films)), []
    gap = np.full((films[0][0].shape[0], pad, films[0][0].shape[2]), 255, np.uint8)
    for k in range(n):
        now = [film[round(k * (len(film) - 1) / max(n - 1, 1))] for film in films]
        frames.append(np.concatenate([part for frame in now for part in (gap, frame)][1:], axis=1))
    return frames


def save_gif(frames: Iterable[np.ndarray], path: str | Path, fps: float = 15, hold: float = 2.0) -> Path:
    """Write frames (H, W, C) uint8 as an endless GIF with one palette, whole or not at all.

    Args:
        fps: frames a second, in (0, 50]; GIF players slow anything faster down.
        hold: seconds that the last frame stays.
    Raises:
        ValueError: no frames, fps outside (0, 50], or hold < 0.
    """
    check_timing(fps, hold)
    pictures = [pillow(f).convert("RGB" if f.shape[-1] in (3, 4) else "L") for f in frames]
    if not pictures:
        raise ValueError("GIF: there are no frames")
    if pictures[0].mode == "RGB":  # one palette for all, from first, middle and last: no flicker
        sample = [np.asarray(pictures[i]) for i in (0, len(pictures) // 2, -1)]
        palette = Image.fromarray(np.concatenate(sample)).quantize(256, dither=Image.Dither.NONE)
        pictures = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [round(1000 / fps + 1000 * hold)]
    with atomic(Path(path)) as temporary:
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return Path(path)


def check_timing(fps: float, hold: float) -> None:
    """Refuse what a GIF cannot do, before the frames are made."""
    if not 0 < fps <= 50 or not 0 <= hold <= 600:
        raise ValueError(f"GIF: fps must lie in (0, 50] and hold in [0, 600] seconds, got {fps} and {hold}")


def spread(n: int, frames: int) -> Sequence[int]:
    """Which of n steps to show in a given number of frames: evenly, always with the last; sorted, no repeats."""
    return sorted({round(k * (n - 1) / max(frames - 1, 1)) for k in range(frames)} | {n - 1}) if n else []


def quality_plot(records: list[dict], against: Literal["evaluations", "seconds"] = "evaluations"):
    """A matplotlib figure of a sweep: quality against network evaluations or time, a line a sampler and scale.

    Error bars are 95 % intervals, circles with their seconds the settings that no other beats in evaluations, the
    dashed line the test images, where there are as many.

    Args:
        records: as `diffusion evaluate --sweep` writes them.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = blank(8, 5)
    axes = figure.subplots()
    lines: dict[str, list[dict]] = {}
    several = len({r["setting"]["scale"] for r in records}) > 1
    for r in records:
        scale = f", scale {r['setting']['scale']:g}" if several else ""
        lines.setdefault(f"{sampled(r)}{scale}", []).append(r)
    for k, (name, mine) in enumerate(lines.items()):
        mine = sorted(mine, key=lambda r: r[against])
        first = [r["figures"][0] for r in mine]
        x, y = [r[against] for r in mine], [f["value"] for f in first]
        error = [[f["value"] - f["low"] for f in first], [f["high"] - f["value"] for f in first]]
        axes.errorbar(x, y, error, marker="osD^v<>P"[k % 8], ms=5, lw=1.3, capsize=2, label=name)
    front = [r for r in records if r["pareto"]]
    values = [r["figures"][0]["value"] for r in front]
    axes.scatter([r[against] for r in front], values, s=140, facecolors="none", edgecolors="k", label="Pareto")
    for r in front:
        at = r[against], r["figures"][0]["value"]
        axes.annotate(f"{r['seconds']:.0f} s", at, (9, 7), textcoords="offset points", fontsize=8)
    shown = records[0]["figures"][0]
    if shown["m"] == shown["n"]:  # of fewer test images it would be no floor
        axes.axhline(shown["floor"], color="0.5", lw=1, ls="--", label=f"{shown['m']:,} test images")
    seconds = f"seconds for {shown['n']:,} samples"
    axes.set(
        xscale="log",
        xlabel="network evaluations an image" if against == "evaluations" else seconds,
        ylabel=shown["metric"],
    )
    if all(f["value"] > 0 for r in records for f in r["figures"][:1]) and shown["better"] == "low":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if against == "evaluations":
        axes.set_xticks(sorted({r["evaluations"] for r in records}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title(f"{shown['n']:,} samples a point, {shown['weights']} weights")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def scale_plot(records: list[dict]):
    """A matplotlib figure of a sweep over the guidance scale: each figure against it, a line a sampler and its steps.

    Bands are 95 % intervals, dashed lines the test images, where they can be compared; 1 is marked, the
    condition at its word.

    Args:
        records: as `diffusion evaluate --sweep` writes them.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    names = [f["metric"] for f in records[0]["figures"]]
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = blank(4 * columns, 3.4 * rows + 0.5)
    lines: dict[str, list[dict]] = {}
    for r in sorted(records, key=lambda r: r["setting"]["scale"]):
        lines.setdefault(f"{sampled(r)}, {r['setting']['steps']} steps", []).append(r)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for k, (name, axes) in enumerate(zip(names, panels, strict=False)):
        for i, (label, mine) in enumerate(lines.items()):
            figures, x = [r["figures"][k] for r in mine], [r["setting"]["scale"] for r in mine]
            (line,) = axes.plot(x, [f["value"] for f in figures], marker="osD^v<>P"[i % 8], ms=4, lw=1.3, label=label)
            ends = [f["low"] for f in figures], [f["high"] for f in figures]
            axes.fill_between(x, *ends, color=line.get_color(), alpha=0.2, lw=0)
        f = records[0]["figures"][k]
        if f["better"] != "low" or f["m"] == f["n"]:  # a distance of fewer test images would be no floor
            axes.axhline(f["floor"], color="0.5", lw=1, ls="--", label=f"{f['m']:,} test images")
        axes.axvline(1, color="0.8", lw=1, zorder=0)
        better = {"low": "lower is better", "high": "higher is better", "floor": "as test images"}[f["better"]]
        axes.set(xlabel="guidance scale", title=f"{name}, {better}")
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    n, weights = (records[0]["setting"][key] for key in ("n", "weights"))
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
                  title=f"{n:,} samples a point, {weights} weights", title_fontsize=9)  # fmt: skip
    return figure


def sampled(record: dict) -> str:
    """The sampler of a record, with what else was asked for."""
    shown = ("sampler", "steps", "scale", "w")
    return record["setting"]["sampler"] + "".join(f" {k}={v}" for k, v in record["asked"].items() if k not in shown)


def blank(width: float, height: float):
    """An empty matplotlib figure of a size in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib is missing; pip install 'litdiffusion[notebook]' has it") from error
    return Figure(figsize=(width, height), layout="constrained")
