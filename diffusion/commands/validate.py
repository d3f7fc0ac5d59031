"""`diffusion validate`: val/loss of a run, optionally with a modified configuration."""

from diffusion.commands.options.parser import Parser, add_run
from diffusion.commands.options.settings import split
from diffusion.support.console import shown
from diffusion.support.runs import find_checkpoint
from diffusion.training.api import validated
from diffusion.training.launch import first


def main(argv: list[str]) -> int:
    parser = Parser("validate", "Measure val/loss on the test split with the run's own configuration.")
    parser.epilog = (
        "Times are evenly spaced and the noise is fixed, so that the figure is comparable between runs and "
        "checkpoints. Options of `diffusion fit` are accepted as well, e.g. --data.batch_size=512."
    )
    add_run(parser)
    mine, settings = split(parser, argv)
    args = parser.read(mine)
    path = find_checkpoint(args.run)
    loss, images = validated(path, args.weights, settings)
    if first():
        print(f"val/loss {loss:.6f}  ({shown(path)}, {args.weights} weights, {images:,} images)")
    return 0
