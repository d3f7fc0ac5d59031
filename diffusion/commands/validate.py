"""`diffusion validate`: val/loss of a run, or of another configuration of it."""

from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.training.run import quiet, recorded
from diffusion.training.systems import Diffusion

HELP = """usage: diffusion validate RUN [--weights ema|raw] [options of `diffusion fit`]

Measures val/loss on the test split with the run's own configuration: evenly spread times and fixed noise, so that the
figure can be compared between runs and checkpoints. RUN is a run directory, an experiment, or a checkpoint file.
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    quiet()
    path, weights, rest = runs.find_checkpoint(argv[0]), "ema", list(argv[1:])
    if "--weights" in rest:
        at = rest.index("--weights")
        weights = rest[at + 1] if at + 1 < len(rest) else ""
        del rest[at : at + 2]
    if weights not in ("ema", "raw"):
        raise ValueError(f"--weights: wanted ema or raw, got {weights!r}")
    model = Diffusion.load(path, weights)
    cli = recorded(path, rest)
    loss = cli.trainer.validate(model, cli.datamodule, verbose=False)[0]["val/loss"]
    images = len(cli.datamodule.arrays("test")[0])
    print(f"val/loss {loss:.6f}  ({shown(path)}, {weights} weights, {images:,} images)")
    return 0
