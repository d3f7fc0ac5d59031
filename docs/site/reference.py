"""The API reference: one page per package, made of the docstrings; read from the source, without importing it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.site.links import ROOT, relative

LEFT_OUT = ("diffusion.commands", "diffusion.cli", "diffusion.__main__")  # the commands have pages of their own
GROUPS = {  # headings of the list of packages, in the order of docs/design.md
    "The mathematics": ("noise", "denoiser", "nets", "samplers", "guidance", "loss", "likelihood"),
    "Pictures and data": ("generation", "pictures", "data", "preparing"),
    "Training and measuring": ("training", "metrics", "judging", "bench"),
    "Exchange": ("exchange", "compat"),
    "Beneath": ("support",),
}
Named = ast.ClassDef | ast.FunctionDef


class Module(NamedTuple):
    """A module: its dotted name, its syntax tree, and whether it is a package."""

    name: str
    tree: ast.Module
    package: bool

    @property
    def page(self) -> str:
        """The site's page that shows it."""
        name = self.name if self.package else self.name.rpartition(".")[0]
        if name == "diffusion":
            return "api/modules.md"
        return f"api/{name.removeprefix('diffusion.')}.md"

    @property
    def public(self) -> list[Named]:
        """Its classes and functions without a leading underscore."""
        kinds = (ast.ClassDef, ast.FunctionDef)
        return [node for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]

    @property
    def exported(self) -> list[str]:
        """The names in its `__all__`."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return [e.value for e in node.value.elts if isinstance(e, ast.Constant)]
        return []

    @property
    def constants(self) -> set[str]:
        """The names that it assigns at its top level."""
        targets = [t for node in self.tree.body if isinstance(node, ast.Assign) for t in node.targets]
        return {t.id for t in targets if isinstance(t, ast.Name)}

    @property
    def imported(self) -> dict[str, str]:
        """Names that it imports from modules of the package -> where they are from."""
        nodes = [
            n for n in self.tree.body if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("diffusion")
        ]
        return {a.asname or a.name: f"{n.module}.{a.name}" for n in nodes for a in n.names}


@cache
def modules() -> dict[str, Module]:
    """All modules of the package by dotted name, except the command line."""
    found = {}
    for path in sorted((ROOT / "diffusion").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        if not name.startswith(LEFT_OUT):
            found[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")), package)
    return found


def homes() -> dict[str, str]:
    """The names of the top level of `diffusion` -> the modules that define them."""
    tree = modules()["diffusion"].tree
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_HOMES")
    return {name: resolved(f"{home}.{name}") for name, home in ast.literal_eval(table).items()}


def resolved(name: str) -> str:
    """The name under which something is defined that a package imports and exports."""
    module, _, last = name.rpartition(".")
    known = modules().get(module)
    if known and last in known.imported:
        return resolved(known.imported[last])
    return name


@cache
def addresses() -> dict[str, str]:
    """Every public dotted name, under which it is defined or exported -> its address on the site."""
    found = {}
    for module in modules().values():
        if module.name == "diffusion":
            continue
        found[module.name] = module.page if module.package else f"{module.page}#{module.name}"
        for node in module.public:
            name = f"{module.name}.{node.name}"
            found[name] = f"{module.page}#{name}"
            if isinstance(node, ast.ClassDef):
                members = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
                found |= {f"{name}.{m.name}": f"{module.page}#{name}.{m.name}" for m in members}
    for module in modules().values():
        exported = (
            homes() if module.name == "diffusion" else {n: resolved(f"{module.name}.{n}") for n in module.exported}
        )
        for home in exported.values():
            place, _, last = home.rpartition(".")
            if place in modules() and last in modules()[place].constants:
                found.setdefault(home, f"{modules()[place].page}#{home}")
        found |= {f"{module.name}.{n}": found[home] for n, home in exported.items() if home in found}
    return found


def summaries() -> dict[str, str]:
    """The first sentence or line of each public class and function, by the name under which it is defined."""
    return {
        f"{module.name}.{node.name}": (ast.get_docstring(node) or "").partition("\n")[0]
        for module in modules().values()
        for node in module.public
    }


def undocumented() -> list[str]:
    """Modules, public classes and functions without a docstring."""
    found = [name for name, module in modules().items() if not ast.get_docstring(module.tree)]
    return found + [name for name, text in summaries().items() if not text]


def table(rows: dict[str, str], page: str) -> Iterator[str]:
    """A table of names with links and what they are.

    Args:
        rows: the names to show -> the dotted names under which they are defined.
    """
    yield from ("| name | what it is |", "|---|---|")
    texts = summaries()
    for shown, home in rows.items():
        if home in addresses():
            yield f"| [`{shown}`]({relative(addresses()[home], page)}) | {escaped(texts.get(home, 'a constant'))} |"


def escaped(text: str) -> str:
    """Plain text as Markdown in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("$", "&#36;").replace("[", "\\[")


def package_page(package: Module) -> str:
    """The page of a package: what it exports, then its modules."""
    name, inside = package.name, [m for m in modules().values() if m.page == package.page and not m.package]
    lines = [f"# {name}", "", ast.get_docstring(package.tree) or "", ""]
    below = [m for m in modules().values() if m.package and m.name.rpartition(".")[0] == name]
    if below:
        links = [f"[`{m.name}`]({relative(m.page, package.page)})" for m in below]
        lines += [f"Packages in it: {', '.join(links)}.", ""]
    if package.exported:
        lines += ["## Exported names", "", f"`from {name} import ...`:", ""]
        lines += [*table({n: resolved(f"{name}.{n}") for n in package.exported}, package.page), ""]
    if package.public:
        lines += [f"::: {name}", "    options:", "      heading_level: 2", ""]
    for module in inside:
        lines += [f"::: {module.name}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """All pages of the API reference: their addresses -> their text."""
    found = {m.page: package_page(m) for m in modules().values() if m.package and m.name != "diffusion"}
    single = [m for m in modules().values() if not m.package and m.name.count(".") == 1]
    found["api/modules.md"] = "\n".join(
        ["# Modules of the top level", "", "What is in no package: notebooks and training jobs.", ""]
        + [f"::: {m.name}\n    options:\n      heading_level: 2\n" for m in single]
    )
    return {"api/index.md": index()} | found


def index() -> str:
    """The first page of the API reference."""
    page = "api/index.md"
    lines = [
        "# API reference",
        "",
        "Every public class and function, from its docstring. `import diffusion` gives:",
        "",
    ]
    lines += [*table({f"diffusion.{name}": home for name, home in homes().items()}, page), ""]
    lines += ["Each is imported on first use, so `import diffusion` imports no torch.", "", "## Packages", ""]
    for heading, names in GROUPS.items():
        lines += [f"### {heading}", "", "| package | what is in it |", "|---|---|"]
        for module in modules().values():
            if module.package and module.name.split(".")[1:2] and module.name.split(".")[1] in names:
                text = (ast.get_docstring(module.tree) or "").partition("\n")[0]
                lines.append(f"| [`{module.name}`]({relative(module.page, page)}) | {escaped(text)} |")
        lines.append("")
    return "\n".join([*lines, "[Modules of the top level](modules.md): notebooks and training jobs.", ""])


def order() -> list[str]:
    """The API pages in the order of the navigation."""
    places = [name for names in GROUPS.values() for name in names]

    def key(page: str) -> tuple[int, str]:
        name = Path(page).name.split(".")[0]
        return (places.index(name) if name in places else len(places), page)

    found = sorted((p for p in pages() if p not in ("api/index.md", "api/modules.md")), key=key)
    return ["api/index.md", *found, "api/modules.md"]
