"""`diffusion average`: a checkpoint with an average of the weights whose width is chosen after training."""

from pathlib import Path

from diffusion.commands.options.parser import Parser, add_run
from diffusion.denoiser import averages
from diffusion.support import runs
from diffusion.support.console import shown, tool


def main(argv: list[str]) -> int:
    parser = Parser(
        "average",
        "Write a checkpoint with an average of the weights, from the snapshots of a run trained with "
        "--posthoc.snapshots 16; without --sigma_rel, list them.",
    )
    add_run(parser, weights=False)
    add = parser.add_argument
    add("--sigma_rel", type=float, help="width: standard deviation of the average as a fraction of the training")
    add("--step", type=int, help="average up to this step only (default: the last one)")
    add("--out", type=Path, help="file to write (default: in the run's checkpoints/)")
    add("--clean", action="store_true", help="remove the snapshots, after writing if --sigma_rel is given")
    words = parser.read(argv)
    file = runs.find_checkpoint(words.run)
    run = runs.directory(file)
    if words.sigma_rel is not None:
        made = averages.averaged(run, words.sigma_rel, words.step)
        path = averages.save_average(file, made, words.sigma_rel, words.out)
        print(
            f"{shown(path)}: sigma_rel {words.sigma_rel:g} at step {made.step:,}, of {made.snapshots} snapshots; "
            f"relative error of its profile {made.error:.2g}"
        )
        print(f"next: {tool('diffusion')} evaluate {shown(path)}")
    elif not words.clean:
        found = averages.snapshots(run)
        for s in found:
            print(f"  step {s.step:9,}  {s.images:13,} images  sigma_rel {s.sigma_rel:g}")
        size = sum(s.path.stat().st_size for s in found) / 1e6
        print(f"{shown(run)}: {len(found)} snapshots, {size:,.1f} MB")
    if words.clean:
        print(f"removed {averages.clean(run) / 1e6:,.1f} MB of snapshots from {shown(run)}")
    return 0
