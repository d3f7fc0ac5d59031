"""What the commands that start from a checkpoint share: arguments, model, sampler, guidance, places to write."""

import inspect
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from diffusion.guidance import Guidance
from diffusion.nets.speed import MODES, compiled
from diffusion.options import conditions
from diffusion.options.guiding import choose_guidance, convert, guidance_options
from diffusion.samplers import Sampler
from diffusion.support.runs import find_checkpoint
from diffusion.support.specs import build, named, spec, suggest
from diffusion.training.systems import Diffusion


class Parser(ArgumentParser):
    """argparse whose errors are exceptions, so that they become one line like every other."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"diffusion {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> None:
        raise ValueError(f"{message}; see: {self.prog} --help")


def sampling_parser(command: str, description: str, n: int, out: str) -> Parser:
    """The arguments of every command that samples from a run."""
    parser = Parser(command, description)
    parser.epilog = "Any argument of the sampler and of the guidance can be given too: --eta 0.5, --variance large."
    add = parser.add_argument
    add("run", help="run directory, experiment folder, or checkpoint file")
    parser.pictures = n
    add("--n", type=int, help=f"pictures (default {n}); with --each, pictures a row")
    add("--out", type=Path, default=Path(out), help=f"default {out}")
    add("--sampler", help="class name or import path (default: the run's)")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    conditions.add_options(parser)
    guidance_options(parser)
    add("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    add("--weights", choices=["ema", "raw"], default="ema", help="averaged or raw weights (default ema)")
    machine_options(parser, 256)
    return parser


def machine_options(parser: ArgumentParser, batch_size: int) -> None:
    """How the network is computed, by every command that samples."""
    add = parser.add_argument
    add(
        "--batch_size", type=int, default=batch_size,
        help=f"pictures at a time; it does not change them (default {batch_size})",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    add("--precision", choices=["32", "bf16"], default="32", help="of the network (default 32)")
    add("--compile", default="", metavar="MODE", help=f"torch.compile the network: {', '.join(MODES)}")


def load(path: Path | str, args: Namespace) -> Diffusion:
    """The model of a checkpoint, computed as the arguments say."""
    model = Diffusion.load(find_checkpoint(path), args.weights, device(args.device))
    model.denoiser.precision = torch.bfloat16 if args.precision == "bf16" else None
    if args.compile:
        compiled(model.denoiser.net, args.compile)
    return model


def open_run(parser: Parser, argv: list[str]) -> tuple[Namespace, Diffusion, Sampler, Guidance]:
    """Parse, check and load: the arguments, the model on its device, and how to sample.

    In the arguments, `n` is then how many pictures to make, `given` what each is asked for by, and `across` how many
    of them fit a row of a grid (None: a square).
    """
    args, rest = parser.parse_known_args(argv)
    if args.n is not None and args.n < 1 or args.batch_size < 1:
        raise ValueError(f"--n and --batch_size must be at least 1, got {args.n} and {args.batch_size}")
    rest, data_options = split(rest) if args.image == "test" else (rest, [])
    model = load(args.run, args)
    guidance, rest = choose_guidance(model, args, rest)
    args.n, args.given, args.across = conditions.ask(model, args, parser.pictures, data_options)
    return args, model, choose_sampler(parser, model, args, rest), guidance


def split(rest: list[str]) -> tuple[list[str], list[str]]:
    """The words of the sampler's options, and those of the data's."""
    words = [w for word in rest for w in (word.split("=", 1) if word.startswith("--") else [word])]
    sides: tuple[list[str], list[str]] = ([], [])
    side = sides[0]
    for word in words:
        if word.startswith("--"):
            side = sides[word.startswith("--data")]
        side.append(word)
    return sides


def device(name: str) -> torch.device:
    """The device of a name; auto is a GPU where there is one.

    Raises:
        ValueError: an unknown name, or a GPU where there is none.
    """
    if name == "auto":  # of several processes, each has its own GPU
        own = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: there is no such device; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"--device {name}: {torch.cuda.device_count()} GPUs are usable here; use auto or cpu")
    return chosen


def choose_sampler(parser: Parser, model: Diffusion, args: Namespace, rest: list[str]) -> Sampler:
    """The run's sampler or another, with the arguments given for it on the command line."""
    kind = named(args.sampler, Sampler, "diffusion.samplers") if args.sampler else type(model.sampler)
    chosen = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": {}}
    if not args.sampler:
        chosen = spec(model.sampler)
    parameters = inspect.signature(kind).parameters
    if args.steps is not None:
        chosen["init_args"]["steps"] = args.steps
    words = [w for word in rest for w in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        option = words.pop(0)
        if option.removeprefix("--") not in parameters or not option.startswith("--"):
            known = [o for a in parser._actions for o in a.option_strings] + [f"--{p}" for p in parameters]
            parser.error(f"unknown option {option!r} (sampler {kind.__name__}){suggest(option, known)}")
        if not words:
            parser.error(f"{option} needs a value")
        chosen["init_args"][option[2:]] = convert(option, words.pop(0), parameters[option[2:]].annotation)
    return build(chosen)


def check_writable(path: Path) -> None:
    """Find out before the work whether a file or folder can be made at `path`.

    Raises:
        OSError: it cannot; the message says why.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been here
    except OSError as error:
        raise type(error)(f"{path}: cannot be written ({error.strerror}); choose another place with --out") from error
