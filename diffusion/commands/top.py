"""`diffusion top`: what the machine does, and what it did during a training."""

import sys
import time

from diffusion.commands.options.parser import Parser
from diffusion.support import watched

CLEAR = "\x1b[H\x1b[J"  # the cursor to the corner, and everything after it erased


def main(argv: list[str]) -> int:
    parser = Parser("top", "Show the machine, and the recorded figures of a running or finished training.")
    add = parser.add_argument
    add("run", nargs="?", default="", help="run directory, or experiment folder (its newest run); the machine alone")
    add("--every", type=float, default=2.0, help="seconds between two pictures on a terminal, at least 0.1 (default 2)")
    add("--once", action="store_true", help="print once, as when the output is no terminal")
    words = parser.read(argv)
    if not words.every >= 0.1:
        parser.error(f"--every: wanted at least 0.1 seconds, got {words.every:g}")
    run = watched.located(words.run) if words.run else None
    machine, live = watched.Machine(), sys.stdout.isatty() and not words.once
    try:
        while True:
            time.sleep(words.every if live else 0.1)  # the cores in use are a mean over time
            said = "\n".join([machine.text(), *([watched.of_run(run)] if run else [])])
            print(f"{CLEAR}{said}\n(Ctrl-C ends)" if live else said, flush=True)
            if not live:
                return 0
    except KeyboardInterrupt:
        return 0
