"""`diffusion edit`: edit existing pictures with a trained model."""

import time
from dataclasses import fields
from pathlib import Path

from diffusion.commands.options.parser import (
    Parser,
    add_bands,
    add_cascade,
    add_conditions,
    add_machine,
    add_run,
    add_sampling,
    add_weights,
    fields_of,
    numbers,
)  # fmt: skip
from diffusion.generation.editing.inputs import MASKS
from diffusion.generation.editing.rows import Edit
from diffusion.generation.editing.sheet import VERBS, Verb, perform
from diffusion.generation.request import Request
from diffusion.support.specs import suggest

OPTIONS = {
    "mask": {"help": f"{', '.join(MASKS)}, with :fraction, or a PNG, white is repainted (default right)"},
    "jumps": {"type": int, "help": "number of repetitions of each segment (default 10)"},
    "length": {"type": int, "help": "levels per segment (default 5)"},
    "strength": {"type": float, "help": "in [0, 1]: 0 is the picture, 1 pure noise (default 0.5)"},
    "amount": {"type": float, "help": "in [0, 1]: 0 is the picture, 1 a new sample (default 0.3)"},
    "iterations": {"type": int, "help": "network evaluations to invert a step (default 5)"},
    "at": {"type": numbers(float), "help": "times, 1 is noise and 0 clean (default 1,0.8,0.6,0.4,0.2,0)"},
}

HELP = f"""usage: diffusion edit VERB RUN [options]

Edit pictures with a trained model.

{chr(10).join(f"  {name:13}{verb.does}" for name, verb in VERBS.items())}

`diffusion edit VERB --help` lists the options; docs/editing.md has a picture of each.
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    name, started = argv[0], time.perf_counter()
    if name not in VERBS:
        raise ValueError(f"unknown verb {name!r}{suggest(name, list(VERBS))}; there are: {', '.join(VERBS)}")
    parser = parser_of(name, VERBS[name])
    words = parser.read(argv[1:])
    own = {f.name for f in fields(Edit)} & vars(words).keys()
    edit = Edit(**{option: getattr(words, option) for option in own if getattr(words, option) is not None})
    with parser.explaining():
        sheet = perform(name, Request.of(**fields_of(words, "out", *own)), edit, words.out)
    print(
        f"{words.out}: {name}, {sheet.job.inputs.source}, {sheet.words}; {sheet.job.pipeline.walk}, "
        f"{words.weights} weights, {time.perf_counter() - started:.1f} s on {sheet.job.pipeline.device}"
    )
    print("\n".join(f"  row {k}: {row.title}" for k, row in enumerate(sheet.rows, 1)))
    return 0


def parser_of(name: str, verb: Verb) -> Parser:
    """The options of a verb."""
    reads = "at" not in verb.options
    parser = Parser(f"edit {name}", verb.does[0].upper() + verb.does[1:] + ".", further=True, data=reads)
    parser.epilog += " --out: x.png is a sheet, x.npz has its rows as arrays of the data's type (K, H, W, C)."
    add = parser.add_argument
    add_run(parser, weights=False)
    if reads:
        add("--numbers", type=numbers(int), help="images of the test set: 0,1,2 (default: the first of each class)")
        add("--input", type=Path, nargs="+", help="picture or .npy files of the model's size and channels instead")
    for option in verb.options:
        add(f"--{option}", **OPTIONS[option])
    add_conditions(parser, "a test picture's own; none for a file" if reads else "all classes in turn")
    if verb.n:
        add("--n", type=int, default=verb.n, help=f"{verb.n_of} (default {verb.n})")
    add("--out", type=Path, default=Path(f"{name}.png"), help=f"default {name}.png")
    add_bands(parser)
    add_sampling(parser, "1" if verb.inverts else "the run's")
    add_cascade(parser)
    add("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    add_weights(parser)
    add_machine(parser, 256)
    return parser
