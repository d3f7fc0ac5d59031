"""DDIM with few steps against DDPM with all steps, for one model: seconds, their ratio, and a sheet of the images.

    python -m benchmarks.ddim_ddpm RUN [--n 32] [--ddim 25] [--ddpm 500] [--rounds 2] [--scale 1] [--out ddim_ddpm.png]

The sheet shows DDIM's images above DDPM's, from the same noise, classes in turn.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.common import alternate, machine, ratio, said
from diffusion import Pipeline, pictures
from diffusion.guidance import ClassifierFree
from diffusion.samplers import DDIM, DDPM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=32, help="pictures (default 32)")
    parser.add_argument("--ddim", type=int, default=25, help="its steps (default 25)")
    parser.add_argument("--ddpm", type=int, default=500, help="its steps (default 500)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="classifier-free guidance; 1 is off")
    parser.add_argument("--out", type=Path, default=Path("ddim_ddpm.png"))
    args = parser.parse_args()
    model = Pipeline.load(args.run, device="cuda" if torch.cuda.is_available() else "cpu")
    made = {}

    def side(name, sampler):
        def run():
            made[name] = model.sample(args.n, sampler=sampler, guidance=ClassifierFree(args.scale), batch_size=args.n)

        return run

    sides = {"DDIM": side("DDIM", DDIM(args.ddim)), "DDPM": side("DDPM", DDPM(args.ddpm))}
    times = alternate(sides, args.rounds)
    print(f"{machine()}; {args.n} pictures, guidance {args.scale:g}, {args.rounds} rounds")
    for name, steps in (("DDIM", args.ddim), ("DDPM", args.ddpm)):
        print(f"{name} {steps:4} steps: {sorted(times[name])[len(times[name]) // 2]:8.2f} s")
    print(f"DDPM takes {said(ratio(times['DDPM'], times['DDIM']), 1)} times as long")
    sheet = pictures.grid(pictures.to_uint8(torch.cat([made["DDIM"], made["DDPM"]])), min(16, args.n))
    print(pictures.save_png(sheet, args.out))


if __name__ == "__main__":
    main()
