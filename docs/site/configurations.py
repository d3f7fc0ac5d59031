"""A page for every configuration: its comment, its settings and the command that trains with it."""

import re
from pathlib import Path
from typing import NamedTuple

from docs.site.links import ROOT, address, relative
from docs.site.reference import escaped

FOLDER = ROOT / "configs"
DEFAULTS = ("default", "autoencoder", "classifier", "features")  # read before others, never named by a user
KINDS = {  # headings of the list -> a test of the name
    "Defaults": lambda name: name in DEFAULTS,
    "Classifiers and features": lambda name: "classifier" in name or name.startswith("features"),
    "Autoencoders": lambda name: "autoencoder" in name,
    "Digits": lambda name: name.startswith("digits"),
    "MNIST": lambda name: name.startswith("mnist"),
    "Fashion-MNIST": lambda name: name.startswith("fashion"),
    "CIFAR-10": lambda name: name.startswith("cifar10"),
    "Sprites": lambda name: name.startswith("sprites"),
    "64x64 pixels": lambda name: name.endswith(("64", "64_cpu")),
    "Others": lambda name: True,
}


class Configuration(NamedTuple):
    """A file of configs/: its name, its comment and the settings in it."""

    name: str
    comment: str
    settings: str

    @property
    def title(self) -> str:
        """The first sentence of its comment, without commands."""
        first = re.split(r"(?<=[a-z\d)])[.;:](?=\s|$)", self.comment, maxsplit=1)[0]
        return first if first.endswith(".") else f"{first}."

    @property
    def command(self) -> str:
        """The command of its comment, else the plain one; "" for defaults, which are read by themselves."""
        lines = re.sub(r"\s*\\\n\s*", " ", self.comment)
        said = re.search(
            rf"diffusion fit (-c \S+ )*-c configs/{self.name}\.yaml(?=\s|$|[.;]).*?(?=;|\.?$|\. | \()", lines, re.M
        )
        if said:
            return said.group()
        return "" if self.name in DEFAULTS else f"diffusion fit -c configs/{self.name}.yaml"

    @property
    def kind(self) -> str:
        """The heading that it stands under."""
        return next(kind for kind, fits in KINDS.items() if fits(self.name))


def read(path: Path) -> Configuration:
    """A configuration file, divided into its leading comment and the rest."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = "\n".join(line.removeprefix("#").strip() for line in lines[:end])
    return Configuration(path.stem, comment, "\n".join(lines[end:]).strip())


def configurations() -> list[Configuration]:
    """All of them, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.yaml"))]


def mentions(name: str, texts: dict[str, str]) -> list[str]:
    """The pages that name a configuration, by their addresses on the site."""
    return [page for page, text in texts.items() if re.search(rf"\b{name}\.yaml\b", text)]


def prose(text: str, page: str) -> str:
    """A comment as Markdown: commands as code, names of files as links."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    pieces = re.split(
        r"(\bdiffusion (?:fit|sample|prepare|evaluate) [^;\n]*(?<![\s.,;])|(?:configs/|docs/)?\b\w+\.(?:yaml|md)\b)",
        joined,
    )
    for k, piece in enumerate(pieces):
        if k % 2 == 0:
            pieces[k] = escaped(piece)
        elif piece.startswith("diffusion "):
            pieces[k] = f"`{piece}`"
        elif piece.endswith(".md"):
            name = piece.removeprefix("docs/")
            pieces[k] = f"[{name}]({relative(name, page)})" if (ROOT / "docs" / name).exists() else piece
        else:
            there = address(f"configs/{piece.removeprefix('configs/')}", {})
            pieces[k] = f"[`{piece}`]({relative(there, page)})" if there else f"`{piece}`"
    return "".join(pieces)


def page_of(configuration: Configuration, texts: dict[str, str]) -> str:
    """The page of a configuration.

    Args:
        texts: the written pages, which may name it.
    """
    name, page = configuration.name, f"configurations/{configuration.name}.md"
    lines = [f"# {name}", "", prose(configuration.comment, page), ""]
    if configuration.command:
        lines += ["```bash", configuration.command, "```", ""]
    lines += [f"## configs/{name}.yaml", "", "```yaml", configuration.settings, "```", ""]
    defaults = ("default",) if "system:" not in configuration.settings else DEFAULTS
    links = ", ".join(f"[{d}]({d}.md)" for d in defaults)
    used = "" if name in DEFAULTS else f" What it does not state is in the defaults: {links}."
    lines += [f"What the settings mean: [fit](../commands/fit.md), [parts](../commands/parts.md).{used}", ""]
    if found := mentions(name, texts):
        links = [f"[{Path(p).stem.replace('_', ' ')}]({relative(p, page)})" for p in found]
        lines += [f"Named in: {', '.join(links)}.", ""]
    return "\n".join(lines)


def index() -> str:
    """The list of all configurations."""
    all_of_them = configurations()
    lines = ["# Configurations", "", "One file of `configs/` per experiment, which states only what differs from the "
             "[defaults](default.md). Files can be layered: later ones override earlier ones. A run keeps its whole "
             "configuration in its `config.yaml`.", ""]  # fmt: skip
    for kind in KINDS:
        found = [c for c in all_of_them if c.kind == kind]
        if found:
            lines += [f"## {kind}", "", "| configuration | what it is |", "|---|---|"]
            page = "configurations/index.md"
            lines += [f"| [{c.name}]({c.name}.md) | {prose(c.title, page)} |".replace("\n", " ") for c in found] + [""]
    return "\n".join(lines)


def pages(texts: dict[str, str]) -> dict[str, str]:
    """All pages of configurations: their addresses -> their text."""
    found = {f"configurations/{c.name}.md": page_of(c, texts) for c in configurations()}
    return {"configurations/index.md": index()} | found
