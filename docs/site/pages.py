"""All pages of the site, and their order: the pages of docs/, and those that are made from the code."""

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docs.site import configurations, notebooks, option_pages, picture, reference
from docs.site.links import COPIED, ROOT, SHOWN, place, relative, rewritten, target_of, targets
from docs.site.links import outside as elsewhere

SOURCE = ROOT / "outputs" / "site" / "source"
WRITTEN = ("docs/*.md", "docs/learn/*.md", "docs/do/*.md", "docs/lookup/*.md", "docs/understand/*.md")
OUTSIDE = ("CONTRIBUTING.md", "benchmarks/README.md")
UNDERSTAND = {  # pages of docs/ by subject; what is not here comes under the last heading
    "The whole": ("together", "theory", "design", "check"),
    "Sampling": ("samplers", "guidance", "conditioning", "text", "editing", "resolution", "few_steps"),
    "Training": ("data", "experiments", "recipes", "diagnostics", "watch", "demo", "gallery", "gallery_cifar10"),
    "Running": ("reliability", "processes", "speed", "sagemaker", "serve", "export", "import"),
    "The project": (),
}
LOOKUP = ("metrics", "lookup/formats", "lookup/exit_codes", "lookup/environment")
TITLES = {"lookup/exit_codes": "Exit codes", "contributing": "Contributing", "benchmarks": "Benchmarks"}
MOST = 100_000  # characters of a file that is shown


class Site(NamedTuple):
    """The site: Markdown and other files by their addresses."""

    pages: dict[str, str]
    files: dict[str, bytes | Path]


def written() -> list[str]:
    """The pages that people wrote, by their paths in the repository."""
    found = [p.relative_to(ROOT).as_posix() for pattern in WRITTEN for p in sorted(ROOT.glob(pattern))]
    return [*found, *OUTSIDE]


def texts() -> dict[str, str]:
    """The pages that people wrote, as they are, by their addresses on the site."""
    return {place(path): (ROOT / path).read_text(encoding="utf-8") for path in written()}


@cache
def assembled() -> Site:
    """The whole site.

    Raises:
        FileNotFoundError: a page links to a file that does not exist.
    """
    names = reference.addresses()
    made = {place(path): rewritten((ROOT / path).read_text(encoding="utf-8"), path, names) for path in written()}
    files: dict[str, bytes | Path] = {place(p): ROOT / p for p in pictures()}
    made["index.md"] = (Path(__file__).parent / "front.md").read_text(encoding="utf-8")
    made["together.md"] = picture.page()
    for name in notebooks.names():
        made[f"notebooks/{name}.md"], drawn = notebooks.page(name, names)
        files |= drawn
    made |= option_pages.pages() | configurations.pages(texts()) | reference.pages()
    for section, lister in (("learn", learn), ("do", do), ("lookup", lookup), ("understand", understand)):
        made.setdefault(f"{section}/index.md", contents(section, lister(made), made))
    return Site(made | sources(made), files)


def pictures() -> list[str]:
    """The pictures below docs/ that are part of the site."""
    found = [p for p in sorted((ROOT / "docs").rglob("*")) if p.suffix in COPIED and "site" not in p.parts]
    return [p.relative_to(ROOT).as_posix() for p in found]


def sources(made: dict[str, str]) -> dict[str, str]:
    """The pages that show files of the repository which pages link to, and those that such files link to."""
    found: dict[str, str] = {}
    left = [(page, text) for page, text in made.items()]
    while left:
        page, text = left.pop()
        for target in targets(text):
            if elsewhere(target):
                continue
            address, _ = target_of(page, target)
            if address.startswith("source/") and address not in found:
                found[address] = source(address.removeprefix("source/").removesuffix(".md"), address)
                left.append((address, found[address]))
    return found


def source(path: str, page: str) -> str:
    """A page that shows a file or a folder of the repository."""
    file = ROOT / path
    if file.is_dir():
        inside = [
            p
            for p in sorted(file.iterdir())
            if not p.name.startswith((".", "__")) and (p.is_dir() or p.suffix in SHOWN)
        ]
        links = [f"- [`{p.name}`]({relative(place(p.relative_to(ROOT).as_posix()), page)})" for p in inside]
        return "\n".join([f"# {path}", "", *links, ""])
    text = file.read_text(encoding="utf-8")
    cut = "" if len(text) <= MOST else f"\n\nThe first {MOST:,} of {len(text):,} characters.\n"
    language = "json" if file.suffix == ".ipynb" else SHOWN[file.suffix]
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n`````{language}\n{text[:MOST]}\n`````\n{cut}"


def title(text: str) -> str:
    """The heading of a page."""
    found = re.search(r"^# (.+)$", text, re.M)
    return re.sub(r"[`*]", "", found[1]) if found else ""


def first(text: str) -> str:
    """The first sentence of a page, without links."""
    body = re.sub(
        r"^(---\n.*?\n---\n|!!! .*|    .*|#+ .*|\||!\[.*|<.*|```.*?```)",
        "",
        text,
        flags=re.M | re.S if text.startswith("---") else re.M,
    )
    paragraph = next((p for p in re.split(r"\n\s*\n", body) if p.strip()), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    plain = re.sub(r"^\*\*You will know\*\* (.)", lambda m: m[1].upper(), plain)
    return re.split(r"(?<=[.:])\s(?=[A-Z`*])", plain)[0].rstrip(":")


# --- the order of the pages -------------------------------------------------------------------------------


def numbered(address: str) -> tuple[int, str]:
    """The order of pages of a folder: by the number that they begin with, then by name."""
    number = re.match(r"\d+", Path(address).name)
    return (int(number[0]) if number else 10**6, address)


def folder(made: dict[str, str], name: str) -> list[str]:
    """The pages of a folder without its index, in order."""
    return sorted((p for p in made if Path(p).parent.as_posix() == name and Path(p).name != "index.md"), key=numbered)


def learn(made: dict[str, str]) -> dict[str, list[str]]:
    """The course and the notebooks."""
    return {"Lessons": folder(made, "learn"), "Notebooks": [f"notebooks/{name}.md" for name in notebooks.names()]}


def do(made: dict[str, str]) -> dict[str, list[str]]:
    """The how-to pages."""
    return {"": folder(made, "do")}


def lookup(made: dict[str, str]) -> dict[str, list[str]]:
    """The reference."""
    known = [f"{name}.md" for name in LOOKUP if f"{name}.md" in made]
    others = [p for p in folder(made, "lookup") if p not in known]
    return {
        "Facts": [*known, *others],
        "Commands": ["commands/index.md", *(p for p in made if p.startswith("commands/") and p != "commands/index.md")],
        "Configurations": ["configurations/index.md", *folder(made, "configurations")],
        "API": reference.order(),
    }


def understand(made: dict[str, str]) -> dict[str, list[str]]:
    """The pages of docs/ itself, and of docs/understand/."""
    found = {heading: [f"{n}.md" for n in names if f"{n}.md" in made] for heading, names in UNDERSTAND.items()}
    known = {p for names in found.values() for p in names} | {f"{name}.md" for name in LOOKUP} | {"index.md"}
    last = list(UNDERSTAND)[-1]
    found[last] += [p for p in folder(made, ".") if p not in known]
    return {"": folder(made, "understand")} | found


def contents(section: str, groups: dict[str, list[str]], made: dict[str, str]) -> str:
    """The first page of a section: what is in it."""
    heading, said = {
        "learn": ("Learn", "Diffusion models from the beginning: lessons in order, then notebooks to run and change."),
        "do": ("Do", "One page per task: what to run, and what comes out."),
        "lookup": ("Look up", "Made from the code: what is listed here is what the program has."),
        "understand": ("Understand", "How it works and why it is built this way, with measured figures."),
    }[section]
    lines = [f"# {heading}", "", said, ""]
    for name, inside in groups.items():
        if not inside:
            continue
        lines += [f"## {name}", ""] if name else []
        if section == "lookup" and name != "Facts":
            page = inside[0]
            lines += [f"[{title(made[page])}]({relative(page, 'lookup/index.md')}): {len(inside) - 1} pages.", ""]
            continue
        for page in inside:
            lines.append(f"- [{label(page, made)}]({relative(page, f'{section}/index.md')}): {first(made[page])}")
        lines.append("")
    return "\n".join(lines)


def label(page: str, made: dict[str, str]) -> str:
    """The name of a page in the navigation."""
    return TITLES.get(page.removesuffix(".md")) or title(made[page]) or Path(page).stem


def navigation(site: Site) -> list[Any]:
    """The navigation in MkDocs' form."""
    made = site.pages

    def entries(pages: list[str], short: bool = False) -> list[dict[str, str]]:
        return [{(shortened(p) if short else label(p, made)): p} for p in pages]

    def groups(found: dict[str, list[str]]) -> Iterator[Any]:
        for name, inside in found.items():
            if inside:
                yield from ([{name: entries(inside)}] if name else entries(inside))

    look = lookup(made)
    return [
        {"Home": "index.md"},
        {"Learn": ["learn/index.md", *groups(learn(made))]},
        {"Do": ["do/index.md", *groups(do(made))]},
        {
            "Look up": [
                "lookup/index.md",
                *entries(look["Facts"]),
                *({n: [look[n][0], *entries(look[n][1:], True)]} for n in ("Commands", "Configurations", "API")),
            ]
        },
        {"Understand": ["understand/index.md", *groups(understand(made))]},
    ]


def shortened(page: str) -> str:
    """The name of a page of the reference in the navigation."""
    return Path(page).stem


def listed(entry: Any) -> list[str]:
    """The pages in a navigation."""
    if isinstance(entry, str):
        return [entry]
    inside = entry.values() if isinstance(entry, dict) else entry
    return [page for part in inside for page in listed(part)]


# --- writing ----------------------------------------------------------------------------------------------


def write(site: Site, where: Path = SOURCE, more: dict[str, bytes] | None = None) -> None:
    """Write the site's source; equal files are left alone, and files that are no longer in it are removed."""
    contents: dict[str, bytes | Path] = {k: v.encode() for k, v in site.pages.items()} | site.files | (more or {})
    for address, data in contents.items():
        path = where / address
        data = data.read_bytes() if isinstance(data, Path) else data
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in sorted(where.rglob("*"), reverse=True):
        name = path.relative_to(where).as_posix()
        if path.is_file() and name not in contents and not name.startswith("assets/"):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            shutil.rmtree(path)
