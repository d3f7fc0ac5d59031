"""`diffusion sample`: pictures from a trained model, as a grid, an array file, or a folder of PNGs."""

import math
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion import viz
from diffusion.callbacks.pictures import beside
from diffusion.commands.common import check_writable, open_run, sampling_parser
from diffusion.tools import atomic


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
    started = time.perf_counter()
    x = model.sample(args.n, y, args.seed, sampler, guidance, args.batch_size, True, image)
    seconds = time.perf_counter() - started
    images = viz.to_uint8(x)
    if args.out.suffix == ".png":
        shown, each = beside(model, images, args.given)
        viz.save_png(viz.grid(shown, args.columns * each or args.across), args.out)
    elif args.out.suffix == ".npz":
        kept = {"labels": np.full(args.n, -1) if y is None else y.numpy(), "class_names": np.array(model.class_names)}
        kept |= {name: v.numpy() for name, v in (("condition", image), ("truth", truth)) if v is not None}
        with atomic(args.out) as temporary:
            np.savez_compressed(temporary, images=images, **kept)  # label -1: none; contexts are vectors
    else:
        save_folder(images, args.out)
    print(
        f"{args.out}: {args.n} pictures in {seconds:.1f} s ({args.n / seconds:.1f} a second), "
        f"{type(sampler).__name__} {sampler.steps} steps, {args.weights} weights, seed {args.seed}, {model.device}"
    )
    if truth is not None:
        start = psnr(model.hint.show(image, model.shape), truth)
        print(f"to the truth: {psnr(x, truth):.1f} dB (PSNR); what the model was shown: {start:.1f} dB")
    return 0


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]: 10 log10(2^2 / mean squared error)."""
    return 10 * math.log10(4 / max(float((x.clamp(-1, 1) - truth).square().mean()), 1e-10))


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
