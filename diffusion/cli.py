"""The command `diffusion`: finds the subcommand, runs it, and reports errors in one line. Imports no torch itself."""

import os
import select
import sys
from importlib import import_module

from diffusion import __version__
from diffusion.support import signals

COMMANDS = {
    "prepare": "make images ready:         diffusion prepare photos --size 64 --out data/photos",
    "fit": "train a model:             diffusion fit -c configs/mnist.yaml [--resume auto]",
    "validate": "measure val/loss:          diffusion validate RUN",
    "evaluate": "quality of samples:        diffusion evaluate RUN --n 5000",
    "nll": "likelihood in bits/dim:    diffusion nll RUN",
    "sample": "sample pictures:           diffusion sample RUN --n 64 --out grid.png",
    "edit": "edit pictures:             diffusion edit inpaint RUN --mask left --out edit.png",
    "film": "film the denoising:        diffusion film RUN --n 9 --out denoising.gif",
    "average": "choose the average:        diffusion average RUN --sigma_rel 0.05",
    "export": "for other programs:        diffusion export RUN --to model.onnx",
    "import": "use others' checkpoints:   diffusion import FOLDER --from diffusers --out RUN",
    "pull": "get a published model:     diffusion pull NAME; diffusion sample zoo:digits",
    "serve": "a web page with models:    diffusion serve lightning_logs",
    "describe": "a network's cost:          diffusion describe configs/cifar10.yaml | RUN",
    "top": "watch the machine:         diffusion top RUN",
    "demo": "train and sample digits:   diffusion demo",
    "check": "verify the mathematics:    diffusion check --sampler my_module.MySampler",
    "doctor": "inspect this machine:      diffusion doctor",
}
ALIASES = {"gif": "film"}

HELP = f"""diffusion {__version__}: train, resume, sample and export diffusion models.

usage: diffusion COMMAND [options] [--debug]

{chr(10).join(f"  {name:10}{text}" for name, text in COMMANDS.items())}

RUN is a run directory (lightning_logs/mnist/version_0), an experiment (its newest run), a checkpoint file, an exported
.safetensors or .onnx file, or zoo:NAME, a published model (zoo:digits is included).
`diffusion COMMAND --help` lists the options of a command; --debug shows the traceback of an error.
"""


UNREAD = 141  # 128 + SIGPIPE, as the shell reports a program whose output nobody reads
LISTENING = ("fit", "demo")  # commands that can be resumed after a signal


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 130 Ctrl-C, 141 if the reader
    of the output went away, 143 SIGTERM, 1 anything else.

    Args:
        argv: the arguments after `diffusion`; by default those of this process.
    """
    if argv is None and (name := next(iter(sys.argv[1:]), "")) in LISTENING:
        with signals.process(f"diffusion {name}"):  # before the imports, which take seconds
            return run(sys.argv[1:])
    return run(list(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Find the command, run it, and report an error in one line; silent if the reader of the output has gone."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at exit
        return UNREAD
    return code


def _unread() -> bool:
    """Whether the reader of the output has gone, as in `diffusion describe RUN | head -1`."""
    poll = select.poll()
    poll.register(1, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: list[str]) -> int:
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    name = ALIASES.get(argv[0], argv[0])
    if name not in COMMANDS:
        from diffusion.support.specs import suggest

        return _fail("", f"unknown command {name!r}{suggest(name, list(COMMANDS))}; see: diffusion --help", 2)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # finds my.MyClass of a local my.py; last, so that it hides no package
    from diffusion.support.console import in_one_line

    try:
        with in_one_line(f"diffusion {name}"):
            return import_module(f"diffusion.commands.{name}").main(argv[1:]) or 0
    except KeyboardInterrupt:
        print(f"diffusion {name}: interrupted", file=sys.stderr)
        return 130
    except signals.Stopped as stop:
        return stop.code
    except Exception as error:
        if debug or isinstance(error, BrokenPipeError) and _unread():
            raise
        from diffusion.commands.options.errors import explain

        return _fail(name, *explain(error, name))


def _fail(command: str, message: str, code: int) -> int:
    rank = next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "0")
    where = f"[process {rank}] " if rank != "0" else ""
    print(f"{where}diffusion{' ' + command if command else ''}: error: {message}", file=sys.stderr)
    return code
