"""`diffusion sample`: pictures from a trained model, as a grid, an array file, or a folder of PNGs."""

import math
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.options.common import check_writable, open_run, sampling_parser
from diffusion.support.files import atomic
from diffusion.support.processes import Processes, together
from diffusion.training.callbacks.pictures import beside
from diffusion.training.systems import Diffusion


def main(argv: list[str]) -> int:
    parser = sampling_parser("sample", "Make pictures with a trained model.", 64, "grid.png")
    parser.epilog += (
        " --out: x.png is a grid (with --image, each picture beside its image), x.npz has images uint8 (N, H, W, C) "
        "and what was asked for, x is a folder of PNGs."
    )
    parser.add_argument("--columns", type=int, default=0, help="pictures a row of the grid (default: one a class)")
    args, model, sampler, guidance = open_run(parser, argv)
    if args.out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"--out {args.out}: wanted a .png, a .npz, or a folder name without a dot")
    if not args.out.suffix and args.out.is_dir() and any(args.out.iterdir()):
        raise ValueError(f"--out {args.out}: this folder is not empty; give a new one")
    check_writable(args.out if args.out.suffix else args.out / "x")
    y, image, truth = args.given
    with together() as processes:
        started = time.perf_counter()
        part = processes.part(args.n)
        mine, its = (v if v is None else v[part] for v in (y, image))
        batches = model.batches(
            part.stop - part.start, mine, args.seed, sampler, guidance, args.batch_size,
            progress=processes.first, first=part.start, image=its,
        )  # fmt: skip
        if args.out.suffix:
            images = np.concatenate([pictures.to_uint8(x) for x in batches])
        else:
            images = stream(batches, args.out, part.start, processes, keep=truth is not None)
        images = processes.gather(torch.from_numpy(images)).numpy()
        seconds = time.perf_counter() - started
        if processes.first:
            write(args, model, images)
            print(
                f"{args.out}: {args.n} pictures in {seconds:.1f} s ({args.n / seconds:.1f} a second), "
                f"{type(sampler).__name__} {sampler.steps} steps, {args.weights} weights, seed {args.seed}, "
                f"{model.device}{f' x {processes.size}' if processes.size > 1 else ''}"
            )
            if truth is not None:
                truth, start = (pictures.to_uint8(v) for v in (truth, model.hint.show(image, model.shape)))
                print(f"to the truth: {psnr(images, truth):.1f} dB (PSNR); what was shown: {psnr(start, truth):.1f} dB")
    return 0


def write(args: Namespace, model: Diffusion, images: np.ndarray) -> None:
    """A grid or an array file, as the name of --out asks; a folder is there already."""
    y, image, truth = args.given
    if args.out.suffix == ".png":
        shown, each = beside(model, images, args.given)
        pictures.save_png(pictures.grid(shown, args.columns * each or args.across), args.out)
    elif args.out.suffix == ".npz":
        kept = {"labels": np.full(args.n, -1) if y is None else y.numpy(), "class_names": np.array(model.class_names)}
        kept |= {name: v.numpy() for name, v in (("condition", image), ("truth", truth)) if v is not None}
        with atomic(args.out) as temporary:
            np.savez_compressed(temporary, images=images, **kept)  # label -1: none; contexts are vectors


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images: 10 log10(255^2 / mean squared error)."""
    return 10 * math.log10(255**2 / max(np.square(images.astype(float) - truth).mean(), 1e-10))


def stream(batches: Iterator[Tensor], folder: Path, first: int, processes: Processes, keep: bool) -> np.ndarray:
    """00000.png, 00001.png, ... as they are made, from number `first` on: all of them or none.

    Returns:
        The images (n, H, W, C) uint8 if they are to be kept in memory; else none of them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-") if processes.first else None
    temporary, kept = Path(processes.agreed(made)), []
    try:
        for x in batches:
            images = pictures.to_uint8(x)
            for image in images:
                pictures.pillow(image).save(temporary / f"{first:05d}.png")
                first += 1
            kept.append(images if keep else images[:0])
        processes.gather(torch.zeros(0))  # all have written theirs
        if processes.first:
            temporary.chmod(0o755)
            temporary.replace(folder)
    finally:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
    return np.concatenate(kept)
