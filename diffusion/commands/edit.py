"""`diffusion edit`: a trained model at work on pictures that exist."""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import editing, pictures
from diffusion.editing.midway import beginning, noised
from diffusion.guidance import Guidance, Plain
from diffusion.judging.measure import Counted, cost
from diffusion.metrics.evaluator import repeated
from diffusion.noise.draws import ImageDraws
from diffusion.noise.level import Level
from diffusion.options import conditions
from diffusion.options.common import Parser, check_writable, choose_sampler, load, machine_options, split
from diffusion.options.guiding import choose_guidance, guidance_options
from diffusion.options.images import MASKS, given_mask, given_pictures
from diffusion.samplers import DDIM, Sampler
from diffusion.support.console import progress
from diffusion.support.files import atomic
from diffusion.support.specs import suggest
from diffusion.training.systems import Diffusion

MOST = 8  # pictures of the test set, where none are named


class Row(NamedTuple):
    """A row of the sheet: what it is, in words, and its images (K, C, H, W)."""

    what: str
    images: Tensor


class Job(NamedTuple):
    """What a verb works with: images and labels are of the pictures given, or of the pictures wanted (`stop`)."""

    args: Namespace
    model: Diffusion
    sampler: Sampler
    guidance: Guidance
    images: Tensor
    y: Tensor | None
    given: str

    @property
    def how(self) -> dict:
        return {"guidance": self.guidance, "batch_size": self.args.batch_size}


def inpaint(job: Job) -> tuple[list[Row], str]:
    args, x0 = job.args, job.images
    mask, words = given_mask(args.mask, job.model.shape, args.seed)
    rows = [Row("input", x0), Row("masked", x0.masked_fill(mask, 0.0))]
    for seed in range(args.seed, args.seed + args.n):
        made = editing.inpaint(
            job.model, x0, mask, job.y, seed, job.sampler, jumps=args.jumps, length=args.length, **job.how
        )
        rows.append(Row(f"result, seed {seed}", made))
    return rows, f"{words}, {args.jumps} jumps of {args.length} levels"


def img2img(job: Job) -> tuple[list[Row], str]:
    args, x0, schedule = job.args, job.images, job.model.denoiser.schedule
    start = beginning(job.sampler, schedule, args.strength)
    t = job.sampler.levels(schedule)[start]
    x = noised(x0, job.sampler, schedule, start, ImageDraws(args.seed, range(len(x0))))
    rows = [Row("input", x0), Row(f"noised to t = {float(t.t):.3g}, seed {args.seed}", x / size(t))]
    for seed in range(args.seed, args.seed + args.n):
        made = editing.img2img(job.model, x0, args.strength, job.y, seed, job.sampler, **job.how)
        rows.append(Row(f"result, seed {seed}", made))
    return rows, f"strength {args.strength:g}: {job.sampler.steps - start} of the steps"


def interpolate(job: Job) -> tuple[list[Row], str]:
    x0, y = job.images, job.y
    if len(x0) < 2:
        raise ValueError("interpolate: wanted two pictures or more; name them: --images 0,1")
    labels = (None, None) if y is None else (y[:-1], y[1:])
    made = editing.interpolate(
        job.model, x0[:-1], x0[1:], job.args.n, *labels, job.sampler, iterations=job.args.iterations, **job.how
    )
    rows = [Row(f"from picture {k} to {k + 1}", row) for k, row in enumerate(made, 1)]
    ends = torch.stack([made[:, 0] - x0[:-1], made[:, -1] - x0[1:]])
    return (
        rows,
        f"{job.args.n} pictures a row, the ends {float(ends.square().mean().sqrt()):.2g} rms from the given ones",
    )


def vary(job: Job) -> tuple[list[Row], str]:
    args, x0 = job.args, job.images
    made = editing.vary(
        job.model, x0, args.amount, args.n, job.y, args.seed, job.sampler, iterations=args.iterations, **job.how
    )
    rows = [Row(f"variation, seed {args.seed + k}", made[:, k]) for k in range(args.n)]
    return [Row("input", x0), *rows], f"amount {args.amount:g}"


def reconstruct(job: Job) -> tuple[list[Row], str]:
    made, error = editing.reconstruct(
        job.model, job.images, job.y, job.sampler, iterations=job.args.iterations, **job.how
    )
    errors = " ".join(f"{e:.2g}" for e in error.tolist())
    return [Row("input", job.images), Row("there and back", made)], f"rms error of each, in [-1, 1]: {errors}"


def stop(job: Job) -> tuple[list[Row], str]:
    args = job.args
    frames = editing.stop(job.model, args.at, args.n, job.y, args.seed, job.sampler, job.guidance)
    rows = []
    for k in range(args.n):
        rows.append(Row(f"picture {k + 1}: x_t", torch.stack([(f.x / size(f.t))[k].cpu() for f in frames])))
        rows.append(Row(f"picture {k + 1}: its guess of x_0", torch.stack([f.x0[k].cpu() for f in frames])))
    return rows, "columns t = " + ", ".join(f"{float(f.t.t):.3g}" for f in frames)


def size(t: Level) -> float:
    """The spread of x_t where that of x_0 is 1: states are shown at unit variance, or VE's would be black and white."""
    return float(t.alpha**2 + t.sigma**2) ** 0.5


class Verb(NamedTuple):
    run: Callable[[Job], tuple[list[Row], str]]
    what: str
    options: tuple[str, ...]
    n: int = 0  # default of --n, 0 for none
    of: str = "results of each picture, of seeds in a row"
    inverts: bool = False
    calls: Callable[[Job], float] | None = None  # how often images will be put to the network, if it is easily said


def each(job: Job) -> float:
    """Network calls that one of the sampler's steps takes."""
    return cost(job.sampler, job.model.denoiser.schedule) / job.sampler.steps


def inpainting(job: Job) -> float:
    steps = editing.route(job.sampler.steps, job.args.jumps, job.args.length)
    forward = sum(to > k for k, to in zip([0, *steps], steps, strict=False))
    return forward * each(job) * job.args.n * len(job.images)


def partly(job: Job) -> float:
    start = beginning(job.sampler, job.model.denoiser.schedule, job.args.strength)
    return (job.sampler.steps - start) * each(job) * job.args.n * len(job.images)


VERBS = {
    "inpaint": Verb(inpaint, "paint a part anew (RePaint)", ("mask", "jumps", "length"), 1, calls=inpainting),
    "img2img": Verb(img2img, "start from a noised picture (SDEdit)", ("strength",), 1, calls=partly),
    "interpolate": Verb(
        interpolate, "go from each picture to the next", ("iterations",), 9, "pictures a row, both ends included", True
    ),
    "vary": Verb(vary, "variations near a picture", ("amount", "iterations"), 3, inverts=True),
    "reconstruct": Verb(reconstruct, "to noise and back, with the error", ("iterations",), inverts=True),
    "stop": Verb(stop, "look at x_t and its guess of x_0 on the way", ("at",), 3, "pictures, two rows each"),
}

OPTIONS = {
    "mask": {
        "default": "right",
        "help": f"{', '.join(MASKS)}, with :fraction, or a PNG, white is made anew (default right)",
    },
    "jumps": {"type": int, "default": 10, "help": "how often each stretch of the way is walked again (default 10)"},
    "length": {"type": int, "default": 5, "help": "levels in a stretch (default 5)"},
    "strength": {"type": float, "default": 0.5, "help": "in [0, 1]: 0 is the picture, 1 pure noise (default 0.5)"},
    "amount": {"type": float, "default": 0.3, "help": "in [0, 1]: 0 is the picture, 1 a new sample (default 0.3)"},
    "iterations": {"type": int, "default": 5, "help": "network calls to undo a step (default 5)"},
    "at": {"default": "1,0.8,0.6,0.4,0.2,0", "help": "times, 1 is noise and 0 clean (default 1,0.8,0.6,0.4,0.2,0)"},
}

HELP = f"""usage: diffusion edit VERB RUN [options]

What a trained model does to pictures that exist.

{chr(10).join(f"  {name:13}{verb.what}" for name, verb in VERBS.items())}

`diffusion edit VERB --help` lists the options; docs/editing.md has a picture of each.
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if argv[0] not in VERBS:
        raise ValueError(f"unknown verb {argv[0]!r}{suggest(argv[0], list(VERBS))}; there are: {', '.join(VERBS)}")
    name, verb = argv[0], VERBS[argv[0]]
    started = time.perf_counter()
    job = prepare(verb, parser_of(name, verb), argv[1:])
    with progress(verb.calls and round(verb.calls(job))) as bar:
        rows, words = verb.run(job._replace(guidance=Counted(job.guidance, bar.update)))
    save(rows, job.args.out)
    print(
        f"{job.args.out}: {name}, {job.given}, {words}; {type(job.sampler).__name__} {job.sampler.steps} steps, "
        f"{job.args.weights} weights, {time.perf_counter() - started:.1f} s on {job.model.device}"
    )
    print("\n".join(f"  row {k}: {row.what}" for k, row in enumerate(rows, 1)))
    return 0


def parser_of(name: str, verb: Verb) -> Parser:
    parser = Parser(f"edit {name}", verb.what[0].upper() + verb.what[1:] + ".")
    parser.epilog = (
        "Any argument of the sampler and of the guidance can be given too: --eta 0.5, --grid leading."
        " --out: x.png is a sheet, x.npz has its rows as arrays uint8 (K, H, W, C)."
    )
    add = parser.add_argument
    add("run", help="run directory, experiment folder, or checkpoint file")
    if verb.run is not stop:
        parser.epilog += " Options of `diffusion fit` for the data can be given too: --data.root."
        add("--images", help="numbers in the run's test set: 0,1,2 (default: the first of each class)")
        add("--image", type=Path, nargs="+", help="picture files of the model's size and channels, in their place")
    for option in verb.options:
        add(f"--{option}", **OPTIONS[option])
    own = "all classes in turn" if verb.run is stop else "a test picture's own; none for a file"
    conditions.add_conditions(parser, own)
    if verb.n:
        add("--n", type=int, default=verb.n, help=f"{verb.of} (default {verb.n})")
    add("--out", type=Path, default=Path(f"{name}.png"), help=f"default {name}.png")
    add("--sampler", help="class name or import path (default: the run's)")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    guidance_options(parser, "1" if verb.inverts else "the run's")
    add("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    add("--weights", choices=["ema", "raw"], default="ema", help="averaged or raw weights (default ema)")
    machine_options(parser, 256)
    return parser


def prepare(verb: Verb, parser: Parser, argv: list[str]) -> Job:
    """Everything checked and loaded, before any work."""
    args, rest = parser.parse_known_args(argv)
    rest, data = split(rest) if verb.run is not stop else (rest, [])
    if getattr(args, "n", 1) < 1 or args.batch_size < 1:
        raise ValueError(f"--n and --batch_size must be at least 1, got {args.n} and {args.batch_size}")
    if args.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {args.out}: wanted a .png or a .npz")
    check_writable(args.out)
    model = load(args.run, args)
    usual = model.guidance
    guidance, rest = choose_guidance(model, args, rest)
    asked = conditions.rows_of(model, args)  # what cannot be asked for is refused
    sampler = choose_sampler(parser, model, args, rest)
    if verb.inverts:
        guidance = Plain() if guidance is usual else guidance  # the farther a scale is from 1, the harder to undo
        if not (args.sampler or isinstance(sampler, DDIM)):  # a run's own, that cannot be undone
            sampler = DDIM(args.steps or editing.inverter(model).steps, grid=sampler.grid)
        editing.inverter(model, sampler)
    if verb.run is stop:
        args.at = numbers("--at", args.at, float)
        y = model.in_turn(args.n) if asked is None else repeated(asked, args.n)
        return Job(args, model, sampler, guidance, torch.empty(0), y, f"seed {args.seed}")
    args.images = numbers("--images", args.images, int) if args.images else None
    images, y, given = given_pictures(args, data, model, MOST)
    y = y if asked is None else repeated(asked, len(images))
    return Job(args, model, sampler, guidance, images, y, given)


def numbers(option: str, text: str, kind: type) -> list:
    """Numbers between commas."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text}: wanted numbers between commas, as in {option} 0,1") from error


def save(rows: list[Row], out: Path) -> None:
    """A sheet, or the rows as arrays by their names."""
    images = [pictures.to_uint8(row.images) for row in rows]
    if out.suffix == ".png":
        pictures.save_png(pictures.grid(np.concatenate(images), len(images[0])), out)
    else:
        with atomic(out) as temporary:
            np.savez_compressed(temporary, **{row.what: array for row, array in zip(rows, images, strict=True)})
