"""`diffusion sample`: pictures from a trained model, as a grid, an array file, or a folder of PNGs."""

import shutil
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion import viz
from diffusion.callbacks.pictures import columns_of
from diffusion.commands.common import check_writable, open_run, sampling_parser
from diffusion.processes import together
from diffusion.systems import Diffusion
from diffusion.tools import atomic


def main(argv: list[str]) -> int:
    parser = sampling_parser("sample", "Make pictures with a trained model.", 64, "grid.png")
    parser.epilog += " --out: x.png is a grid, x.npz has images uint8 (N, H, W, C) and labels, x is a folder of PNGs."
    parser.add_argument("--columns", type=int, default=0, help="pictures a row of the grid (default: one a class)")
    args, model, sampler, guidance = open_run(parser, argv)
    if args.out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"--out {args.out}: wanted a .png, a .npz, or a folder name without a dot")
    if not args.out.suffix and args.out.is_dir() and any(args.out.iterdir()):
        raise ValueError(f"--out {args.out}: this folder is not empty; give a new one")
    check_writable(args.out if args.out.suffix else args.out / "x")
    y = model.in_turn(args.n, args.label)
    with together() as processes:
        started = time.perf_counter()
        part = processes.part(args.n)
        x = model.sample(
            part.stop - part.start, None if y is None else y[part], args.seed, sampler, guidance, args.batch_size,
            progress=processes.first, first=part.start,
        )  # fmt: skip
        images = viz.to_uint8(processes.gather(x))
        seconds = time.perf_counter() - started
        if processes.first:
            write(args, model, images, y)
            print(
                f"{args.out}: {args.n} pictures in {seconds:.1f} s ({args.n / seconds:.1f} a second), "
                f"{type(sampler).__name__} {sampler.steps} steps, {args.weights} weights, seed {args.seed}, "
                f"{model.device}{f' x {processes.size}' if processes.size > 1 else ''}"
            )
    return 0


def write(args: Namespace, model: Diffusion, images: np.ndarray, y: Tensor | None) -> None:
    """The pictures in the form that the name of --out asks for."""
    if args.out.suffix == ".png":
        columns = args.columns or (columns_of(model) if args.label is None else None)
        viz.save_png(viz.grid(images, columns), args.out)
    elif args.out.suffix == ".npz":
        labels = np.full(args.n, -1) if y is None else y.numpy()  # -1: no label
        with atomic(args.out) as temporary:
            np.savez_compressed(temporary, images=images, labels=labels)
    else:
        save_folder(images, args.out)


def save_folder(images: np.ndarray, folder: Path) -> None:
    """00000.png, 00001.png, ...: all of them or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
    try:
        for k, image in enumerate(images):
            viz.pillow(image).save(temporary / f"{k:05d}.png")
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
