"""Figures for notebooks and docs: schedules, noised images, curves of runs, points in the plane.

Each function returns a matplotlib figure without showing it. `pip install 'litdiffusion[notebook]'` has matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.noise import Level, Schedule, forward_var
from diffusion.pictures.eight_bit import to_uint8
from diffusion.pictures.grid import pillow
from diffusion.pictures.sweeps import blank
from diffusion.support import runs


def schedules(chosen: Mapping[str, Schedule], steps: int = 1000):
    """Signal kept, noise added per step, and log-SNR of schedules against time.

    A step is 1 / steps of the time, so that discrete and continuous schedules can be compared: for a DDPM table of as
    many steps it is beta_i. Scales are divided by sqrt(alpha^2 + sigma^2), which leaves VP processes unchanged.

    Args:
        chosen: name -> schedule.
        steps: number of steps that the time is divided into, >= 2.
    """
    made = blank(12, 3.4)
    panels = made.subplots(1, 3)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    for name, schedule in chosen.items():
        level = schedule.level(t)
        size = torch.hypot(level.alpha, level.sigma)
        even = Level(t, level.alpha / size, level.sigma / size)
        before, after = Level(*(v[:-1] for v in even)), Level(*(v[1:] for v in even))
        for axes, x, y in (
            (panels[0], t, even.alpha**2),
            (panels[1], t[1:], forward_var(before, after)),
            (panels[2], t, level.log_snr.clamp(-20, 20)),
        ):
            axes.plot(x, y, label=name)
    titles = ("remaining signal", f"noise added in 1/{steps} of the time", "log-SNR")
    labels = (r"$\bar\alpha = \alpha^2$", r"$\beta$", r"$\log(\alpha^2 / \sigma^2)$")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, xlabel="t (1 is noise)", ylabel=label)
        plain(axes)
    panels[1].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=9)
    return made


def pictures(rows: Mapping[str, Tensor | np.ndarray], columns: Sequence[str] = (), scale: float = 0.9):
    """Rows of images with row names and optional column names.

    Args:
        rows: name -> images (N, C, H, W) in [-1, 1], or uint8 (N, H, W, C).
        columns: a name for each column, or none.
        scale: side of an image in inches.
    """
    shown = {name: to_uint8(x) if isinstance(x, Tensor) else x for name, x in rows.items()}
    width = max(len(x) for x in shown.values())
    names = 0.2 + 0.075 * max(map(len, shown))  # inches
    made = blank(scale * width + names, scale * len(shown) + (0.4 if columns else 0.1))
    for row, axes in zip(shown.items(), made.subplots(len(shown), width, squeeze=False), strict=True):
        for k, axis in enumerate(axes):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if k < len(row[1]):
                axis.imshow(np.asarray(pillow(row[1][k])), cmap="gray", vmin=0, vmax=255)
        axes[0].set_ylabel(row[0], rotation=0, ha="right", va="center", fontsize=9)
    for axis, name in zip(made.axes[:width], columns, strict=False):
        axis.set_title(name, fontsize=9)
    return made


def noised(x0: Tensor, chosen: Mapping[str, Schedule], times: Sequence[float], seed: int = 0):
    """One image (C, H, W) noised step by step, one row per schedule, all with the same noise, at unit variance.

    Args:
        x0: in [-1, 1].
        times: in [0, 1]; 0 is the image.
    """
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    rows = {}
    for name, schedule in chosen.items():
        levels = [schedule.clean() if t == 0 else schedule.level(torch.tensor(float(t)).double()) for t in times]
        states = [(v.alpha * x0 + v.sigma * eps) / torch.hypot(v.alpha, v.sigma) for v in levels]
        rows[name] = torch.stack(states).float()
    return pictures(rows, [f"t = {t:g}" for t in times])


def curves(run: str | Path, tags: Sequence[str] = ("train/loss", "val/loss")):
    """Curves of a run, or of all runs in an experiment folder, read from TensorBoard event files.

    Args:
        run: a run directory, or an experiment folder, whose versions are plotted together.
        tags: scalars to plot, one panel each; those that no run has are left out.
    Raises:
        FileNotFoundError: there are no event files in the folder.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(run)
    folders = [folder] if list(folder.glob("events*")) else [v for v in runs.versions(folder) if v.is_dir()]
    read = {f.name: EventAccumulator(str(f)).Reload() for f in folders if list(f.glob("events*"))}
    if not read:
        raise FileNotFoundError(f"{run}: no TensorBoard event files here; name a run directory")
    known = {tag for events in read.values() for tag in events.Tags()["scalars"]}
    wanted = [tag for tag in tags if tag in known] or sorted(known)[:1] or list(tags[:1])
    made = blank(5 * len(wanted), 3.2)
    for axes, tag in zip(made.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        for name, events in read.items():
            if tag in events.Tags()["scalars"]:
                points = events.Scalars(tag)
                axes.plot([p.step for p in points], [p.value for p in points], lw=1.2, label=name)
        axes.set(title=tag, xlabel="step")
        plain(axes)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing logged yet", transform=axes.transAxes, ha="center", color="0.5")
        elif len(read) > 1:
            axes.legend(frameon=False, fontsize=8)
    return made


def lines(chosen: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, mark: float | None = None):
    """Points (x, y) joined by lines, one line per name.

    Args:
        mark: a position on the x axis to mark.
    """
    made = blank(6, 3.2)
    axes = made.subplots()
    for name, found in chosen.items():
        axes.plot(*zip(*found, strict=True), marker="o", ms=4, label=name)
    if mark is not None:
        axes.axvline(mark, color="0.7", lw=1, ls="--", zorder=0)
    axes.set(xlabel=xlabel, ylim=(0, None))
    plain(axes)
    axes.legend(frameon=False, fontsize=9)
    return made


PANELS = {  # of `watched`: title -> figures, with the names of several in one panel
    "images per second": {"images_per_s": ""},
    "J per image": {"joules_per_image": ""},
    "GPU power, W": {"gpu_watts": ""},
    "GPU busy, %": {"gpu_busy_percent": "computing", "gpu_memory_busy_percent": "memory"},
    "GPU memory, MiB": {"gpu_used_mib": "in use", "gpu_reserved_mib": "reserved", "gpu_allocated_mib": "tensors"},
    "GPU temperature, C": {"gpu_celsius": ""},
    "clocks, MHz": {"gpu_sm_mhz": "GPU", "gpu_memory_mhz": "its memory", "cpu_mhz": "processor"},
    "cores used": {"cpu_cores": ""},
    "memory, MiB": {"resident_mib": "this process", "available_mib": "available"},
}
PAUSE = 5  # times the usual time between two rows: a longer one breaks the line


def watched(rows: Sequence[Mapping[str, float | str]]):
    """The machine during a training, one panel for each kind of figure that was recorded.

    Args:
        rows: as `support.watched.read` gives them, at least 2.
    """
    panels = {title: [k for k in names if any(k in row for row in rows)] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    times = np.array([row["time"] for row in rows])
    minutes, gaps = (times - times[0]) / 60, np.diff(times)
    breaks = np.flatnonzero(gaps > PAUSE * np.median(gaps)) + 1
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    made = blank(4 * across, 2.2 * down)
    every = made.subplots(down, across, squeeze=False).flat
    for axes, (title, names) in zip(every, panels.items(), strict=False):
        for name in names:
            values = np.array([row.get(name, np.nan) for row in rows])
            axes.plot(np.insert(minutes, breaks, np.nan), np.insert(values, breaks, np.nan), lw=1.2,
                      label=PANELS[title][name])  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("minutes", fontsize=8)
        axes.set_ylim(bottom=0)
        plain(axes)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=7)
    for axes in made.axes[len(panels) :]:
        axes.set_visible(False)
    return made


def points(clouds: Mapping[str, Tensor], limit: float = 2.5, size: float = 4):
    """Clouds of points in the plane, one panel each: name -> (N, 2) or (N, 2, 1, 1)."""
    made = blank(3 * len(clouds), 3.2)
    for axes, (name, x) in zip(made.subplots(1, len(clouds), squeeze=False)[0], clouds.items(), strict=True):
        x = x.reshape(len(x), 2).cpu()
        axes.scatter(x[:, 0], x[:, 1], s=size, alpha=0.5, lw=0)
        axes.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return made


def field(denoise: Denoise, levels: Mapping[str, Level], limit: float = 2.5, cells: int = 17):
    """The score, -eps / sigma, as arrows over the plane, one panel per level; long arrows are shortened.

    Args:
        denoise: prediction for points (B, 2, 1, 1).
        levels: name -> scalar level.
    """
    made = blank(3.2 * len(levels), 3.4)
    side = torch.linspace(-limit, limit, cells)
    x = torch.cartesian_prod(side, side).view(-1, 2, 1, 1)
    for axes, (name, t) in zip(made.subplots(1, len(levels), squeeze=False)[0], levels.items(), strict=True):
        with torch.no_grad():
            score = (-denoise(x, t).eps / t.sigma).reshape(-1, 2)
        length = score.norm(dim=1, keepdim=True)
        arrows = score / length.clamp(min=1e-9) * length.clamp(max=length.median() * 2)
        axes.quiver(x[:, 0, 0, 0], x[:, 1, 0, 0], arrows[:, 0], arrows[:, 1], length[:, 0], cmap="viridis")
        axes.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return made


def film(states: Sequence[Tensor], names: Sequence[str], limit: float = 2.5) -> list[np.ndarray]:
    """Frames (H, W, 3) of clouds of points, for `pictures.save_film`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    frames = []
    for x, name in zip(states, names, strict=True):
        made = points({name: x}, limit)
        made.set_dpi(80)
        canvas = FigureCanvasAgg(made)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def plain(axes) -> None:
    """A light grid and no frame."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
