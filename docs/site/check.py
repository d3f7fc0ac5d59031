"""Checks of the site: links, anchors, pictures and their texts, weight, commands, code, and pages out of reach.

Those of the pages' text need neither MkDocs nor a build; those of the built pages follow a build. A check returns the
faults that it finds.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from docs.site import pages, reference, said
from docs.site.links import outside as elsewhere
from docs.site.links import parts, target_of, targets
from docs.site.pages import Site

HEADING = re.compile(r"^(#{1,6}) +(.+?) *#* *$", re.M)
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\(|<img\b(?P<html>[^>]*)>")
FILMS = (".gif", ".webp", ".mp4", ".webm")
HEAVIEST = 1_000_000  # bytes that a browser loads when a page is opened, without films and the index of the search
WHOLE = 1_500_000  # with the pictures that it loads when they come into view


class Report(NamedTuple):
    """What was checked, and what is wrong."""

    counts: dict[str, int]
    faults: list[str]

    def __str__(self) -> str:
        done = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return "\n".join([*self.faults, f"checked {done}: {len(self.faults) or 'no'} faults"])

    def __add__(self, other: "Report") -> "Report":
        return Report(self.counts | other.counts, self.faults + other.faults)


# --- the text of the pages --------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[*`]|<[^>]+>", "", text)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors(text: str) -> set[str]:
    """The anchors of a page: its headings, and those that it sets itself."""
    plain = "".join(piece for code, piece in parts(text) if not code or "\n" not in piece)
    return {slug(m[2]) for m in HEADING.finditer(plain)} | set(re.findall(r"\bid=\"([^\"]+)\"", plain))


def of_api() -> dict[str, set[str]]:
    """The anchors that docstrings give the pages of the API reference."""
    found: dict[str, set[str]] = {}
    for address in reference.addresses().values():
        page, _, anchor = address.partition("#")
        found.setdefault(page, set()).add(anchor)
    return found


def links(site: Site) -> Report:
    """Every link leads to a page or file of the site, and to a heading that is there."""
    known, api = {page: anchors(text) for page, text in site.pages.items()}, of_api()
    faults, count = [], 0
    for page, text in site.pages.items():
        for target in targets(text):
            if elsewhere(target) and not target.startswith("#"):
                continue
            count += 1
            address, anchor = target_of(page, re.sub(r"\.html(?=#|$)", ".md", target))
            if address not in site.pages and address not in site.files:
                faults.append(f"{page}: {target} leads nowhere")
            elif anchor and anchor[1:] not in known.get(address, set()) | api.get(address, set()):
                faults.append(f"{page}: {target}: there is no such heading")
    return Report({"links": count}, faults)


def pictures(site: Site) -> Report:
    """Every picture has an alternative text."""
    faults, count = [], 0
    for page, text in site.pages.items():
        for code, piece in parts(text):
            for found in PICTURE.finditer("" if code else piece):
                count += 1
                alt = found["alt"] or re.search(r"\balt=\"([^\"]+)\"", found["html"] or "")
                if not alt:
                    faults.append(f"{page}: a picture without an alternative text: {found.group()[:80]}")
    return Report({"pictures": count}, faults)


def commands(texts: Mapping[str, str]) -> Report:
    """Every command line parses, and every block of Python compiles.

    Args:
        texts: pages by their names.
    """
    faults: list[str] = []
    counts = {"commands": 0, "blocks of Python": 0}
    for page, text in texts.items():
        for block in said.blocks(text, page):
            for words in said.command_lines(block):
                counts["commands"] += 1
                if wrong := said.fault(words):
                    faults.append(f"{block.where}: diffusion {' '.join(words)}: {wrong}")
            counts["blocks of Python"] += block.language == "python"
            faults += [wrong] if (wrong := said.broken(block)) else []
    return Report(counts, faults)


def unreached(site: Site) -> list[str]:
    """The pages that neither the navigation nor a link from a page that is reached leads to."""
    left = pages.listed(pages.navigation(site))
    reached: set[str] = set()
    while left:
        page = left.pop()
        if page in reached or page not in site.pages:
            continue
        reached.add(page)
        left += [target_of(page, t)[0] for t in targets(site.pages[page]) if not elsewhere(t)]
    return sorted(site.pages.keys() - reached)


def text(site: Site) -> Report:
    """All checks of the pages' text."""
    lost = [f"{page}: no page leads there" for page in unreached(site)]
    made = {p: t for p, t in site.pages.items() if not p.startswith(("source/", "api/"))}
    return links(site) + pictures(site) + commands(made) + Report({"pages": len(site.pages)}, lost)


# --- the built pages --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A built page: its anchors, its links, what it loads, and pictures without an alternative text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.later: list[str] = []
        self.mute: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {v for k in ("id", "name") if (v := found.get(k))}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag in ("img", "script", "source", "video") and found.get("src"):
            (self.later if found.get("loading") == "lazy" else self.loads).append(found["src"] or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "icon") and found.get("href"):
            self.loads.append(found["href"] or "")
        if tag == "img" and not found.get("alt"):
            self.mute.append(found.get("src") or "")

    @cached_property
    def weight(self) -> int:
        """Bytes of the page and of what it loads at once, without films."""
        return self.path.stat().st_size + self.bytes_of(self.loads)

    @cached_property
    def whole(self) -> int:
        """Bytes of the page and of all that it shows, without films."""
        return self.path.stat().st_size + self.bytes_of(self.loads + self.later)

    def bytes_of(self, names: list[str]) -> int:
        """Bytes of files that the page names, without films."""
        files = {(self.path.parent / re.split(r"[?#]", name)[0]).resolve() for name in names if not outside(name)}
        return sum(f.stat().st_size for f in files if f.is_file() and f.suffix not in FILMS)


def outside(target: str) -> bool:
    """Whether a target is of another site, or no file."""
    return re.match(r"[a-z][a-z0-9+.-]*:|//", target) is not None


def built(folder: Path) -> Report:
    """All checks of the built pages: links with anchors, files, nothing from a network, texts of pictures, weight."""
    found = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    faults: list[str] = []
    count = 0
    for path, page in found.items():
        name = path.relative_to(folder.resolve())
        for target in page.links + page.loads + page.later:
            if outside(target):
                if target not in page.links and not target.startswith("data:"):
                    faults.append(f"{name}: loads {target}")
                continue
            count += 1
            file, _, anchor = target.partition("#")
            there = (path.parent / file.partition("?")[0]).resolve() if file else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file() and path.name != "404.html":
                faults.append(f"{name}: {target} leads nowhere")
            elif anchor and there in found and anchor not in found[there].ids and not anchor.startswith("__"):
                faults.append(f"{name}: {target}: there is no such place")
        faults += [f"{name}: a picture without an alternative text: {src}" for src in page.mute]
        for what, size, most in (("opens with", page.weight, HEAVIEST), ("shows", page.whole, WHOLE)):
            if size > most:
                faults.append(f"{name}: {what} {size / 1e6:.2f} MB, at most {most / 1e6:.1f}")
    heaviest = max(found.values(), key=lambda page: page.weight)
    counts = {"built pages": len(found), "links of built pages": count}
    return Report(counts | {f"bytes of the heaviest page ({heaviest.path.name})": heaviest.weight}, faults)
