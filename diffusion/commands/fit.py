"""`diffusion fit`: train a model."""

import sys
import time

from diffusion.support.processes import age
from diffusion.training.run import train


def main(argv: list[str]) -> int:
    mine = sys.argv[1:2] == ["fit"]  # the process is this command, so the imports count as its time
    train(argv, started=time.perf_counter() - (age() if mine else 0.0))
    return 0
