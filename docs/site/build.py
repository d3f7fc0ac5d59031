"""Builds the documentation's site, strictly, and checks it: `./setup.sh docs`.

python -m docs.site.build            # to outputs/site/html/index.html, which opens from the disk
python -m docs.site.build --serve    # on http://127.0.0.1:8000/, built again when a page changes
"""

import argparse
import os
import sys
import time
from pathlib import Path

from diffusion.support.console import clock
from docs.site import assets, check, notebooks, pages
from docs.site.links import ROOT

CONFIG = Path(__file__).with_name("mkdocs.yml")
HTML = ROOT / "outputs" / "site" / "html"
WATCHED = ("docs", "diffusion", "configs", "benchmarks", "notebooks")


def mkdocs(words: list[str]) -> int:
    """Run a command of MkDocs in this process, which has the pages; returns its exit code."""
    from mkdocs.__main__ import cli

    try:
        return cli(words, standalone_mode=False) or 0
    except SystemExit as end:
        return int(end.code or 0)
    except Exception as error:  # among them the end of a strict build with warnings
        print(f"docs: error: {error}", file=sys.stderr)
        return 1


def main() -> int:
    """Build, check, and say where the site is."""
    parser = argparse.ArgumentParser(prog="./setup.sh docs", description="Build the documentation's site.")
    parser.add_argument("--serve", action="store_true", help="show it on http://127.0.0.1:8000/")
    words = parser.parse_args()
    started = time.perf_counter()
    try:
        notebooks.prepare()
        site = pages.assembled()
        pages.write(site, more=assets.files())
    except (OSError, ValueError) as error:
        print(f"docs: error: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # Material's announcement of its successor
    if words.serve:
        watched = [w for name in WATCHED for w in ("--watch", str(ROOT / name))]
        return mkdocs(["serve", "-f", str(CONFIG), *watched])
    if code := mkdocs(["build", "--strict", "-f", str(CONFIG)]):
        return code
    report = check.text(site) + check.built(HTML)
    print(report)
    print(f"{HTML / 'index.html'}: built in {clock(time.perf_counter() - started)}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
