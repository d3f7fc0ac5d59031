"""Pages of the commands and their options, and of the parts that options choose."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache

from docstring_parser import DocstringStyle, parse

from diffusion import cli
from diffusion.data import ImageData
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.hints import Hint
from diffusion.denoiser.targets import Target
from diffusion.generation.editing.sheet import VERBS
from diffusion.guidance.base import Guidance
from diffusion.guidance.bounds import Bound
from diffusion.loss.augment import NonLeaking
from diffusion.loss.objective import Objective
from diffusion.metrics.base import Metric
from diffusion.nets.base import Net
from diffusion.noise.schedule import Schedule
from diffusion.samplers import Sampler
from diffusion.support.specs import PACKAGES, arguments, concrete, gather
from diffusion.training.build import SYSTEMS
from diffusion.training.systems.optimizers import Optimizer
from docs.site import commands
from docs.site.commands import Option, option, parser_of
from docs.site.links import relative
from docs.site.reference import addresses, escaped

PARTS = {  # the option that chooses a part -> its base class and what it is
    "--data": (ImageData, "data sets"),
    "--model.net": (Net, "networks"),
    "--model.schedule": (Schedule, "schedules"),
    "--model.target": (Target, "targets"),
    "--model.objective": (Objective, "objectives"),
    "--model.sampler": (Sampler, "samplers; elsewhere `--sampler`, whose arguments are options by themselves"),
    "--model.guidance": (Guidance, "guidances; elsewhere `--guidance`, whose arguments are options by themselves"),
    "--model.clamp": (Bound, "limits on the predicted x_0"),
    "--model.hint": (Hint, "images as a second input"),
    "--model.codec": (Codec, "from images to latents"),
    "--model.augment": (NonLeaking, "augmentations of which the network is told"),
    "--model.optimizer": (Optimizer, "optimizers"),
}
LINKED = ("channels", "num_classes", "context_dim", "image_channels", "tokens", "seed")  # given by the data


def cell(text: str) -> str:
    """Plain text as a cell of a table, with its inline code kept."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p.replace("|", "\\|") if p.startswith("`") else escaped(p) for p in pieces)


def rows(options: list[Option]) -> Iterator[str]:
    """A table of options."""
    yield from ("| option | value | default | what it does |", "|---|---|---|---|")
    for each in options:
        names = ", ".join(f"`{name}`" for name in each.names)
        yield f"| {names} | {cell(each.value)} | {each.default} | {cell(each.help)}{each.note} |"


def command_page(name: str) -> str:
    """The page of a command that has one parser."""
    parser = parser_of(name)
    example = cli.COMMANDS[name].partition(":")[2].strip()
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    usage = textwrap.fill(usage, 80, subsequent_indent="    ", break_on_hyphens=False)
    lines = [f"# diffusion {name}", "", cell(parser.description or ""), "", "```text", usage, "```", ""]
    lines += ["For example:", "", "```text", example, "```", ""] if example else []
    lines += ["## Options", "", *rows([option(a, parser) for a in commands.actions(parser)]), ""]
    return "\n".join([*lines, *further(parser.epilog), ""])


def further(epilog: str | None) -> list[str]:
    """What a command's help says below its options."""
    return [
        cell(" ".join(epilog.split())),
        "",
        "Arguments of samplers, guidances and data sets: [parts](parts.md).",
    ] * bool(epilog)


def edit_page() -> str:
    """The page of `edit`: its verbs, what all have in common, and what each has besides."""
    parsers = {verb: parser_of(f"edit {verb}") for verb in VERBS}
    tables = {verb: {o.names: o for o in (option(a, p) for a in commands.actions(p))} for verb, p in parsers.items()}
    common = [o for o in tables["inpaint"].values() if all(o.names in t for t in tables.values())]
    shared = {o.names for o in common}
    lines = ["# diffusion edit", "", "Edit pictures with a trained model: `diffusion edit VERB RUN [options]`.", ""]
    lines += ["| verb | what it does |", "|---|---|", *(f"| [`{v}`](#{v}) | {cell(VERBS[v].does)} |" for v in VERBS)]
    for verb, table in tables.items():
        own = [o for o in table.values() if o.names not in shared]
        lines += ["", f"## {verb}", "", f"{cell(parsers[verb].description or '')} Beside the "
                  "[options of every verb](#options-of-every-verb):", "", *rows(own)]  # fmt: skip
    lines += [
        "",
        "## Options of every verb",
        "",
        "The defaults of --label and --out depend on the verb.",
        "",
        *rows(common),
    ]
    return "\n".join([*lines, "", *further(parsers["inpaint"].epilog), ""])


def doctor_page() -> str:
    """The page of `doctor`, which has no options."""
    return "\n".join(
        ["# diffusion doctor", "", "Prints versions, device, driver, data and disk, and tests whether files can be "
         "written. It has no options; the exit code is 0 if everything is in order, else 1.", ""]
    )  # fmt: skip


def fit_page() -> str:
    """The page of `fit`: the options of every system, by what they belong to."""
    lines = [
        "# diffusion fit", "",
        "Train a model. Every setting is an option, and every option can stand in a configuration file: "
        "`--model.lr 1e-3` is `model: {lr: 1e-3}`. Later files and options override earlier ones: "
        "`diffusion fit -c configs/digits.yaml -c configs/digits_flow.yaml --model.lr 1e-3`. "
        "The [configurations](../configurations/index.md) have a page each.", "",
        "`--data FOLDER` with a folder of `diffusion prepare`, or its address, chooses a configuration that suits it. "
        "An option that names a class, such as `--model.net DiT`, takes a name of [parts](parts.md) or an import path, "
        "and the arguments of that class are options below it: `--model.net.depth 6`.", "",
        "| option | what it does |", "|---|---|",
        "| `-c`, `--config` | a configuration file; may be given repeatedly |",
        "| `--print_config` | print the configuration that results, and exit |", "",
    ]  # fmt: skip
    seen: set[str] = set()
    for system in SYSTEMS:
        sections: dict[str, list[Option]] = {}
        for action in commands.fit_actions(system):
            made = fit_option(action, system)
            key = made.names[0].removeprefix("--").rpartition(".")[0]
            if key == "model" or made.names[0] not in seen:
                sections.setdefault(key, []).append(made)
            seen.add(made.names[0])
        title = f" (`--system {system}`)" if system != "Diffusion" else ""
        for key, options in sections.items():
            heading = {"": "Options of the run", "model": "The model: --model", "trainer": "The trainer: --trainer"}
            lines += [f"## {heading.get(key, f'--{key}')}{title}", "", *rows(options), ""]
    return "\n".join(lines)


def fit_option(action, system: str) -> Option:
    """An option of `fit`."""
    kind = getattr(action, "_typehint", None)
    default = action.default
    if hasattr(default, "class_path"):
        default = default.class_path.rpartition(".")[2]
    plain = isinstance(default, (int, float, str, tuple, list)) and default != ""
    text = commands.fit_help(action, system)
    base = f"--{action.dest}"
    if base not in PARTS:
        return Option((base,), written(kind), f"`{default}`" if plain else "", text)
    note = f" One of the [{PARTS[base][1].partition(';')[0]}](parts.md#{anchor(base)})."
    return Option((base,), "", f"`{default}`" if plain else "", "" if text.startswith("One or more") else text, note)


def written(kind: object) -> str:
    """A type as readers write it."""
    text = kind.__name__ if inspect.isclass(kind) else str(kind)
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text).replace("typing.", "").replace("NoneType", "None")
    return {"int": "N", "float": "X", "str": "text", "bool": "true, false"}.get(
        text, f"`{text}`" if text != "None" else ""
    )


def anchor(option: str) -> str:
    """The anchor of a section of the page of parts."""
    return option.replace(".", "")


@cache
def parts() -> dict[str, list[type]]:
    """The option that chooses a part -> the classes of the package that it can name."""
    for package in PACKAGES:
        gather(f"diffusion.{package}")
    own = {name: concrete(base, "diffusion.") for name, (base, _) in PARTS.items()}
    return {name: sorted(kinds, key=lambda k: k.__name__) for name, kinds in own.items()}


def described(kind: type) -> dict[str, str]:
    """The arguments of a class -> their descriptions in its docstring or those of its bases."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        text = vars(base).get("__doc__") or ""
        init = vars(base).get("__init__")
        for source in (text, getattr(init, "__doc__", "") or ""):
            for p in parse(source, style=DocstringStyle.GOOGLE).params:
                for name in p.arg_name.split(","):
                    found.setdefault(name.strip(), " ".join((p.description or "").split()))
    return found


def arguments_without_help() -> list[str]:
    """Arguments of parts that no docstring describes."""
    return [
        f"{option} {kind.__name__}.{name}"
        for option, kinds in parts().items()
        for kind in kinds
        for name in arguments(kind)
        if name not in LINKED and not described(kind).get(name)
    ]


def parts_page() -> str:
    """Every class that an option can name, with its arguments."""
    page = "commands/parts.md"
    lines = ["# Parts", "", "An option such as `--model.schedule` names one of these classes, and each argument "
             "is an option below it: `--model.schedule Linear --model.schedule.T 500`. In a file:", "",
             "```yaml", "model:", "  schedule: {class_path: Linear, init_args: {T: 500}}", "```", "",
             "What the data determine (channels, classes, vocabulary) is passed on and not listed.", ""]  # fmt: skip
    for name, kinds in parts().items():
        lines += [f"## {name}", "", f"{PARTS[name][1][0].upper()}{PARTS[name][1][1:]}.", ""]
        for kind in kinds:
            home = f"{kind.__module__}.{kind.__qualname__}"
            lines += [f"### {kind.__name__}", "", cell((inspect.getdoc(kind) or "").partition("\n")[0])]
            if home in addresses():
                lines[-1] += f" [Reference]({relative(addresses()[home], page)})."
            texts, own = described(kind), {k: p for k, p in arguments(kind).items() if k not in LINKED}
            if own:
                lines += ["", "| argument | default | what it is |", "|---|---|---|"]
            for key, parameter in own.items():
                lines.append(f"| `{key}` | {shown(parameter.default)} | {cell(texts.get(key, ''))} |")
            lines.append("")
    return "\n".join(lines)


def shown(default: object) -> str:
    """A default of an argument."""
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default == "":
        return ""
    text = repr(default)
    return f"`{text}`" if " at 0x" not in text and "\n" not in text else f"`{type(default).__name__}`"


def index() -> str:
    """The list of commands."""
    lines = ["# Commands", "", "`diffusion COMMAND --help` prints what these pages show.", ""]
    lines += ["| command | for example |", "|---|---|"]
    for name, text in cli.COMMANDS.items():
        what, _, example = text.partition(":")
        lines.append(
            f"| [`{name}`]({name}.md): {what.strip()} | `{example.strip()}` |".replace(" | diffusion", "; diffusion")
        )
    aliases = ", ".join(f"`{new}` is `{old}`" for new, old in cli.ALIASES.items())
    return "\n".join(
        [*lines, "", f"Other names: {aliases}. RUN is a run's folder, an experiment (its newest run), a checkpoint, an "
         "exported file, or `zoo:NAME`; see [files](../lookup/formats.md). `--debug` shows the traceback of an error.",
         "", "What options name: [parts](parts.md). How a command ends: [exit codes](../lookup/exit_codes.md). What it "
         "reads from its surroundings: [environment variables](../lookup/environment.md).", ""]
    )  # fmt: skip


def pages() -> dict[str, str]:
    """All pages of commands: their addresses -> their text."""
    own = {"fit": fit_page, "edit": edit_page, "doctor": doctor_page}
    found = {f"commands/{n}.md": own[n]() if n in own else command_page(n) for n in cli.COMMANDS}
    return {"commands/index.md": index()} | found | {"commands/parts.md": parts_page()}


def metrics() -> list[str]:
    """The keys of all metrics."""
    gather("diffusion.metrics")
    return sorted(kind.key for kind in concrete(Metric, "diffusion."))
