"""Averages of the weights whose width is chosen after training, from snapshots of two power-function averages.

An average of width sigma_rel weighs the weights at time t of a training of length T by its profile, p(t) =
(g + 1) t^g / T^(g + 1), whose standard deviation is sigma_rel T. Time is counted in images. Any profile is close to a
linear combination of a few stored ones, so the same combination of the stored averages is close to its average.
Source: Karras et al. 2024, arXiv:2312.02696, sec. 3 and app. C (eq. 123 to 127, alg. 2 and 3).
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import atomic
from diffusion.support.seal import seal

FOLDER = "averages"  # of the snapshots, in a run's directory
WIDEST = 12**-0.5  # sigma_rel of the plain mean of all steps, g = 0
NAME = re.compile(r"step(\d+)-images(\d+)-width([\d.]+)\.pt")


class Snapshot(NamedTuple):
    """A stored average: the step and the images seen when it was written, and its width."""

    path: Path
    step: int
    images: int
    sigma_rel: float


class Average(NamedTuple):
    """A reconstructed average.

    Attributes:
        weights: float32, by their names in the checkpoint.
        step: of the newest snapshot used, at which the average ends.
        snapshots: how many were combined.
        error: relative L2 error of its profile.
    """

    weights: dict[str, Tensor]
    step: int
    snapshots: int
    error: float


# --- profiles ---------------------------------------------------------------------------------------------


def exponent(sigma_rel: float) -> float:
    """The exponent g of the profile with a relative standard deviation: g^3 + 7 g^2 + (16 - w) g + 12 - w = 0.

    w = sigma_rel^-2; the largest real root is taken.

    Raises:
        ValueError: sigma_rel outside (0, 12^-1/2].
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel: wanted a width in (0, {WIDEST:.4f}] of the training, got {sigma_rel:g}")
    w = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - w, 12.0 - w])
    return float(max(roots.real[abs(roots.imag) < 1e-9]))


def width(g: float) -> float:
    """The relative standard deviation of the profile with exponent g: sqrt((g + 1) / ((g + 2)^2 (g + 3)))."""
    return ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5


def overlaps(g_a: np.ndarray, T_a: np.ndarray, g_b: np.ndarray, T_b: np.ndarray) -> np.ndarray:
    """The inner products (A, B) of profiles, the integrals of p_a(t) p_b(t) over t."""
    g_a, T_a, g_b, T_b = g_a[:, None], T_a[:, None], g_b[None], T_b[None]
    power = np.where(T_a < T_b, g_b, -g_a)
    return (g_a + 1) * (g_b + 1) * (T_a / T_b) ** power / ((g_a + g_b + 1) * np.maximum(T_a, T_b))


def combination(stored: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The factors (N,), of sum 1, with which stored profiles give a wanted one, and the relative L2 error.

    Least squares in the space of profiles, in float64: A x = b with the inner products A of the stored profiles and b
    of each with the wanted one.

    Args:
        stored: (exponent, T) of each.
        wanted: its exponent and T.
    """
    g, T = np.array(stored, np.float64).T
    T = T / wanted[1]  # of order 1
    g_b, T_b = np.array([wanted[0]]), np.ones(1)
    A, b = overlaps(g, T, g, T), overlaps(g, T, g_b, T_b)[:, 0]
    x = np.linalg.solve(A, b)
    x = x / x.sum()
    whole = overlaps(g_b, T_b, g_b, T_b)[0, 0]
    return x, float(max(0.0, 1 - (2 * x @ b - x @ A @ x) / whole) ** 0.5)


# --- snapshots --------------------------------------------------------------------------------------------


def snapshots(run: Path) -> list[Snapshot]:
    """The snapshots of a run directory, oldest first."""
    found = [(path, NAME.fullmatch(path.name)) for path in (run / FOLDER).glob("step*.pt")]
    known = [Snapshot(path, int(m[1]), int(m[2]), float(m[3])) for path, m in found if m]
    return sorted(known, key=lambda s: (s.step, s.sigma_rel))


def write(run: Path, step: int, images: int, sigma_rel: float, weights: dict[str, Tensor]) -> Path:
    """Write a snapshot atomically; the same weights give the same bytes."""
    path = run / FOLDER / f"step{step:08d}-images{images}-width{sigma_rel:g}.pt"
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:  # torch.save would write a name of its own into the file
            torch.save(weights, file)
        seal(temporary)
    return path


def clean(run: Path) -> int:
    """Remove the snapshots of a run directory; the number of bytes freed."""
    freed = sum(path.stat().st_size for path in (run / FOLDER).glob("*"))
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    return freed


def averaged(run: Path, sigma_rel: float, step: int | None = None) -> Average:
    """The average of a width at the end of training, or at the last snapshot of an earlier step.

    Args:
        run: the run directory.
        sigma_rel: standard deviation of its profile, as a fraction of the training so far.
        step: use the snapshots up to this step only; None uses all.
    Raises:
        FileNotFoundError: the run has no snapshots up to this step.
        ValueError: sigma_rel out of range, or a damaged snapshot.
    """
    g = exponent(sigma_rel)
    found = [s for s in snapshots(run) if step is None or s.step <= step]
    if not found:
        there = "no snapshots of averages; train with --posthoc.snapshots 16"
        if known := snapshots(run):
            there = f"no snapshots of averages up to step {step:,}; they begin at step {known[0].step:,}"
        raise FileNotFoundError(f"{shown(run)}: {there}")
    last = found[-1]
    x, error = combination([(exponent(s.sigma_rel), s.images) for s in found], (g, last.images))
    total: dict[str, Tensor] = {}
    for factor, snapshot in zip(x.tolist(), found, strict=True):
        for name, value in runs.open_checkpoint(snapshot.path).items():
            value = value.double().mul_(factor)
            total[name] = total[name].add_(value) if name in total else value
    return Average({name: value.float() for name, value in total.items()}, last.step, len(found), error)


def average(run: str | Path, sigma_rel: float, step: int | None = None, out: str | Path | None = None) -> Path:
    """Write a checkpoint whose weights are an average of a run, and return its path.

    Every command reads it as it reads the run's own checkpoints.

    Args:
        run: run directory, experiment folder (its newest run), or one of its checkpoints.
        sigma_rel, step: see `averaged`.
        out: the file; by default in the run's checkpoints/.
    Raises:
        FileNotFoundError: no such run, or it has no snapshots.
        ValueError: see `averaged`.
    """
    file = runs.find_checkpoint(run)
    return save_average(file, averaged(runs.directory(file), sigma_rel, step), sigma_rel, out)


def save_average(file: Path, made: Average, sigma_rel: float, out: str | Path | None = None) -> Path:
    """Write a checkpoint with the weights of an average and everything else of a run's checkpoint file."""
    read = runs.read_checkpoint(file)
    name = f"sigma_rel{sigma_rel:g}-step{made.step}-average.ckpt"  # no number last: no candidate for resuming
    path = runs.directory(file) / "checkpoints" / name if out is None else Path(out)
    contents = {
        "state_dict": read["state_dict"] | made.weights,
        "hyper_parameters": read["hyper_parameters"],
        "global_step": made.step,
        "epoch": read["epoch"],
        "pytorch-lightning_version": read.get("pytorch-lightning_version", "2.6.0"),
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "weights": "ema",
        "average": {"sigma_rel": sigma_rel, "snapshots": made.snapshots, "error": made.error},
    }
    with atomic(path) as temporary:
        torch.save(contents, temporary)
        seal(temporary)
    return path
