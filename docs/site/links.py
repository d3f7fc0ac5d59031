"""Where a file of the repository is on the site, and links between the two.

The pages in docs/ are written for the repository: their links are paths. On the site a page of docs/ keeps its path
below docs/, a configuration is a page of settings, a notebook is a page with its outputs, and any other file that a
page links to is shown as a page with its text.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"(^ *(?P<fence>```+|~~~+).*?^ *(?P=fence) *$|`[^`\n]+`)", re.M | re.S)
TARGET = re.compile(r"(?<=\]\()(?P<to>[^)\s]+)(?=[^)]*\))|(?P<attribute>\b(?:src|href)=\")(?P<html>[^\"]+)(?=\")")
FIXED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "configs": "configurations/index.md",
    "notebooks": "learn/index.md",
    "docs": "index.md",
}
README = {  # sections of the README -> pages of the site; any other leads to the front page
    "commands": "commands/index.md",
    "notebooks": "learn/index.md",
    "documentation": "index.md#four-ways-in",
}
SHOWN = {  # suffixes of files that are shown as text -> their language
    ".py": "python", ".json": "json", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text",
    ".md": "markdown", "": "text", ".js": "javascript", ".css": "css", ".html": "html",
}  # fmt: skip
COPIED = (".png", ".gif", ".webp", ".jpg", ".svg", ".mp4", ".webm")


def place(path: str) -> str:
    """The address on the site, a path of Markdown or of a picture, of a file or folder of the repository.

    Args:
        path: relative to the repository's root.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of a kind that the site cannot show.
    """
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path in FIXED:
        return FIXED[path]
    file = Path(path)
    if file.parts[0] == "docs" and (file.suffix == ".md" or file.suffix in COPIED):
        return file.relative_to("docs").as_posix()
    if file.parent.name == "configs" and file.suffix == ".yaml":
        return f"configurations/{file.stem}.md"
    if file.suffix == ".ipynb":
        return f"notebooks/{file.stem}.md"
    if (ROOT / path).is_dir() or file.suffix in SHOWN:
        return f"source/{path}.md" if path != "." else "index.md"
    raise ValueError(f"{path}: a {file.suffix} file cannot be shown")


def outside(target: str) -> bool:
    """Whether a link leads to another site, or stays on its page."""
    return target.startswith("#") or re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def target_of(page: str, target: str) -> tuple[str, str]:
    """The repository's path that a link leads to, and its anchor with "#".

    Args:
        page: the file that holds the link.
        target: the link as written there.
    """
    path, hash, anchor = target.partition("#")
    found = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
    return found, hash + anchor


def relative(target: str, page: str) -> str:
    """A site address as a link from another."""
    path, hash, anchor = target.partition("#")
    return os.path.relpath(path, os.path.dirname(page) or ".").replace(os.sep, "/") + hash + anchor


def parts(text: str) -> list[tuple[bool, str]]:
    """The text of a page in pieces, with whether each is code."""
    found, end = [], 0
    for match in CODE.finditer(text):
        found += [(False, text[end : match.start()]), (True, match.group())]
        end = match.end()
    return [*found, (False, text[end:])]


def targets(text: str) -> list[str]:
    """The targets of all links and pictures outside code."""
    return [m["to"] or m["html"] for code, piece in parts(text) if not code for m in TARGET.finditer(piece)]


def rewritten(text: str, page: str, names: dict[str, str]) -> str:
    """The text of a page of the repository with its links changed to those of the site.

    Names of the package and paths of files in backticks become links, too.

    Args:
        page: its path in the repository.
        names: dotted names of the package -> their addresses on the site.
    """
    here = place(page)

    def link(match: re.Match) -> str:
        target = match["to"] or match["html"]
        if outside(target):
            return match.group()
        path, anchor = target_of(page, target)
        there = README.get(anchor[1:], "index.md") if path == "README.md" else place(path) + anchor
        there = relative(there, here)
        if match["html"]:  # not seen by MkDocs
            there = re.sub(r"\.md(?=#|$)", ".html", there)
        return (match["attribute"] or "") + there

    pieces = parts(text)
    for k, (code, piece) in enumerate(pieces):
        if not code:
            pieces[k] = (code, TARGET.sub(link, piece))
        elif "\n" not in piece and not linked(pieces, k):
            there = address(piece.strip("`"), names)
            if there and there.partition("#")[0] != here:
                pieces[k] = (code, f"[{piece}]({relative(there, here)})")
    return "".join(piece for _, piece in pieces)


def linked(pieces: list[tuple[bool, str]], k: int) -> bool:
    """Whether a piece of inline code stands in the text of a link, or in a heading, which is linked itself."""
    before, after = pieces[k - 1][1], pieces[k + 1][1]
    line = "".join(piece for _, piece in pieces[:k]).rpartition("\n")[2]
    return line.startswith("#") or before.rfind("[") > before.rfind("]") or after.startswith("](")


def address(code: str, names: dict[str, str]) -> str:
    """The site's address of what a piece of inline code names: a dotted name, a file, a test; or ""."""
    if code in names:
        return names[code]
    path = code.partition("::")[0]
    if re.fullmatch(r"(configs|tests|benchmarks|notebooks|diffusion)/[\w/.]+\.(yaml|py|ipynb)", path):
        return place(path) if (ROOT / path).is_file() else ""
    return ""
