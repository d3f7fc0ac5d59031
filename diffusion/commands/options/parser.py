"""The parser of every command except `fit`, and the options that several commands share."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from diffusion.generation.choices import UnknownArgument
from diffusion.generation.engine import ENGINES
from diffusion.nets.speed import MODES
from diffusion.nets.threads import FASTEST
from diffusion.support.specs import suggest

FURTHER = "Any argument of the sampler and of the guidance is an option too: --eta 0.5, --variance large."
DATA = "Options of the run's data set can be given too: --data.root DIR."


class Words(Namespace):
    """Parsed options; `arguments` holds those of the sampler and the guidance, `data` those of the data set."""

    arguments: dict[str, str]
    data: dict[str, str]


class Parser(ArgumentParser):
    """An argparse parser that raises exceptions and collects the options of components chosen by the run.

    Args:
        command: name of the command.
        description: what the command does.
        further: collect options that are arguments of the sampler and the guidance.
        data: collect options --data.NAME.
    """

    def __init__(self, command: str, description: str, further: bool = False, data: bool = False) -> None:
        epilog = " ".join(text for text, there in ((FURTHER, further), (DATA, data)) if there)
        super().__init__(prog=f"diffusion {command}", description=description, epilog=epilog, allow_abbrev=False)
        self.further, self.data = further, data

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see: {self.prog} --help")

    @property
    def known(self) -> list[str]:
        """Every option of this parser."""
        return list(self._option_string_actions)

    def read(self, argv: list[str]) -> Words:
        """The options of a command line, given in any order.

        Raises:
            ValueError: an unknown option, or a wrong or missing value.
        """
        words, found = iter(argv), Words(arguments={}, data={})
        mine = []
        for word in words:
            option, equals, value = word.partition("=")
            if not option.startswith("--") or option == "--" or option in self._option_string_actions:
                mine.append(word)
                continue
            into, name = self._place(option, found)
            if not equals:
                value = next(words, None)
                if value is None or value.startswith("--"):
                    self.error(f"{option} needs a value")
            into[name] = value
        return self.parse_args(mine, found)

    def _place(self, option: str, found: Words) -> tuple[dict[str, str], str]:
        """The collection for an option that this parser does not define, and its name there."""
        name = option[2:]
        if self.data and name.startswith("data."):
            return found.data, name.removeprefix("data.")
        if not self.further or "." in name:
            self.error(f"unknown option {option!r}{suggest(option, self.known)}")
        return found.arguments, name

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Report an argument that neither sampler nor guidance takes as an unknown option of this command."""
        try:
            yield
        except UnknownArgument as error:
            option, known = f"--{error.name}", [*self.known, *(f"--{name}" for name in error.known)]
            self.error(f"unknown option {option!r} ({error.kinds}){suggest(option, known)}")


def add_run(parser: Parser, weights: bool = True) -> None:
    """Add RUN and, by default, --weights."""
    parser.add_argument("run", help="run directory, experiment folder (its newest run), checkpoint, or exported file")
    if weights:
        add_weights(parser)


def add_weights(parser: Parser) -> None:
    """Add --weights."""
    parser.add_argument(
        "--weights", choices=["ema", "raw"], default="ema", help="averaged or raw weights (default ema)"
    )


def add_sampling(parser: Parser, usual: str = "the run's") -> None:
    """Add the sampling options: the fields of `generation.choices.Choices`.

    Args:
        usual: a description of the default guidance.
    """
    add = parser.add_argument
    add("--sampler", help="class name or import path (default: the run's)")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    add("--guidance", help=f"class name or import path (default: {usual})")
    add("--scale", type=float, help=f"of the guidance; 1 is off, 0 ignores the label (default: {usual})")
    add("--w", type=float, help="guidance in the convention scale = 1 + w; 0 is off")
    add("--interval", metavar="LOW,HIGH", help="apply guidance only where LOW < sigma / alpha <= HIGH, e.g. 0.2,5")
    add("--rescale", type=float, help="fraction of the added contrast that is removed, 0 .. 1, e.g. 0.7")
    add("--negative", metavar="TEXT", help="what the pictures should not show, for a model trained with captions")
    add("--guide", metavar="RUN", help="autoguidance by a worse model: run directory or checkpoint")
    add("--classifier", metavar="RUN", help="classifier guidance: a NoisyClassifier's run directory or checkpoint")
    add("--clip-prompt", "--clip_prompt", metavar="TEXT", help="CLIP guidance: what the pictures show; needs --clip")
    add("--clip", metavar="FOLDER", help="a CLIP model's folder, as transformers saves it, for --clip-prompt")
    add("--clip-scale", "--clip_scale", type=float, help="of the CLIP guidance; 0 is off (default 1)")


def add_cascade(parser: Parser) -> None:
    """Add the later stages of a cascade, --then and --augment."""
    add = parser.add_argument
    add(
        "--then", action="append", default=[], metavar="RUN",
        help="a super-resolution model that enlarges the pictures of RUN. Can be given repeatedly",
    )  # fmt: skip
    add(
        "--augment", metavar="S",
        help="noise on the input of --then, or S,S,... of each: 0 (default) .. its model.hint.noise",
    )  # fmt: skip


def add_conditions(parser: Parser, usual: str = "all classes in turn") -> None:
    """Add the conditions: label, labels, context and prompt of `generation.conditions.Asked`.

    Args:
        usual: a description of the default condition.
    """
    add = parser.add_argument
    add("--label", help=f"class of all pictures, by number or name (default: {usual})")
    add("--labels", help="several classes, one picture each or, with --n, in turn: 0,1,2 or hero,food")
    add(
        "--context", action="append", default=[], metavar="MIX",
        help="hero=1,food=0.6: a mix of classes; or a .npy file of vectors (N, D). Can be given repeatedly",
    )  # fmt: skip
    add(
        "--prompt", action="append", default=[], metavar="TEXT",
        help="what the pictures show, for a model trained with captions. Can be given repeatedly",
    )  # fmt: skip


def add_asked(parser: Parser) -> None:
    """Add all fields of `generation.conditions.Asked`."""
    add_conditions(parser)
    add = parser.add_argument
    add("--each", action="store_true", help="one row of --n pictures (default 8) for each class, label, mix or prompt")
    add("--between", type=int, default=0, metavar="K", help="K pictures from each prompt to the next, from one noise")
    add(
        "--image",
        help="the model's input image: a .png, a .npy or .npz of the data's type (N, H, W, C), or 'test' for "
        "the run's test images",
    )


def add_bands(parser: Parser) -> None:
    """Add --bands."""
    help = "channels that pictures show, from 1: one, or red, green and blue (default: the first three)"
    parser.add_argument("--bands", default="", metavar="3,2,1", help=help)


def add_machine(parser: Parser, batch_size: int) -> None:
    """Add the options of how the network is evaluated."""
    add = parser.add_argument
    add(
        "--batch_size", type=int, default=batch_size,
        help=f"images per batch; it does not change them (default {batch_size})",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    add("--precision", choices=["32", "bf16"], default="32", help="of the network (default 32)")
    add("--compile", default="", metavar="MODE", help=f"torch.compile the network: {', '.join(MODES)}")
    add(
        "--engine", choices=ENGINES, default="torch",
        help="onnx: ONNX Runtime, on the CPU; fastest: measured here and remembered (default torch)",
    )  # fmt: skip
    add_threads(parser)


def add_threads(parser: Parser) -> None:
    """Add --threads."""
    help = f"of torch: a number, or {FASTEST}: measured here (default: the cores, or OMP_NUM_THREADS)"
    parser.add_argument("--threads", metavar=f"N|{FASTEST}", help=help)


def add_request(parser: Parser, n: str, out: str) -> None:
    """Add RUN, --n, --out and every other field of `generation.request.Request`.

    Args:
        n: a description of the default of --n.
        out: the default of --out.
    """
    add_run(parser, weights=False)
    add = parser.add_argument
    add("--n", type=int, help=f"pictures (default {n}); with --each, pictures per row")
    add("--out", type=Path, default=Path(out), help=f"default {out}")
    add_asked(parser)
    add_bands(parser)
    add_sampling(parser)
    add_cascade(parser)
    add("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    add_weights(parser)
    add_machine(parser, 256)


def fields_of(words: Words, *without: str) -> dict[str, Any]:
    """The options by name, except for some."""
    return {name: value for name, value in vars(words).items() if name not in without}


def numbers(kind: type) -> Callable[[str], list]:
    """An option type: comma-separated numbers."""

    def convert(text: str) -> list:
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError:
            raise ArgumentTypeError(f"wanted comma-separated numbers, e.g. 0,1; got {text!r}") from None

    return convert
