"""What the site needs of the outside: KaTeX and the worker of the search, from npm, pinned and kept in the cache.

The fonts are in the style sheet: a page of file:// may not load them from another folder in every browser.
"""

import base64
import re
from pathlib import Path

from diffusion.exchange.exporting.npm import Package, archive, members
from docs.site.links import ROOT

KATEX = Package(
    "katex",
    "0.19.1",
    1499956,
    "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
)
WORKER = Package(
    "iframe-worker",
    "1.0.4",
    8592,
    "sha512-roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
)
UNUSED = ("Fraktur", "Script", "SansSerif", "Typewriter", "Caligraphic-Bold", "BoldItalic", "Main-Italic")  # fonts
THEME = Path(__file__).parent / "theme"


def styles(css: str, fonts: dict[str, bytes]) -> str:
    """KaTeX's style sheet with its fonts in it, without those that no formula uses.

    Args:
        css: as published; each font is named in three formats.
        fonts: the contents of the fonts by their paths.
    """

    def face(match: re.Match) -> str:
        name = re.search(r"url\((fonts/[\w-]+\.woff2)\)", match.group())[1]
        if name not in fonts:
            return ""
        data = f"url(data:font/woff2;base64,{base64.b64encode(fonts[name]).decode()}) format('woff2')"
        return re.sub(r"src:[^;}]*", f"src:{data}", match.group())

    return re.sub(r"@font-face\{[^}]*\}", face, css)


def files() -> dict[str, bytes]:
    """The files that all pages share: their addresses -> their contents."""
    data = archive(KATEX)
    css = members(data, "dist/katex.min.css")[0].decode()
    wanted = sorted({f for f in re.findall(r"fonts/[\w-]+\.woff2", css) if not any(word in f for word in UNUSED)})
    fonts = dict(zip(wanted, members(data, *(f"dist/{f}" for f in wanted)), strict=True))
    script, render, licence = members(data, "dist/katex.min.js", "dist/contrib/auto-render.min.js", "LICENSE")
    shim, mit = members(archive(WORKER), "shim/index.js", "LICENSE")
    return {
        "assets/katex.css": styles(css, fonts).encode(),
        "assets/katex.js": script + b"\n" + render,
        "assets/katex.licence.txt": licence,
        "assets/iframe-worker.js": shim,
        "assets/iframe-worker.licence.txt": mit,
        "assets/site.css": (THEME / "site.css").read_bytes(),
        "assets/formulas.js": (THEME / "formulas.js").read_bytes(),
        "assets/logo.svg": (THEME / "logo.svg").read_bytes(),
        "LICENSE.txt": (ROOT / "LICENSE").read_bytes(),
    }
