"""What was found in a source and what was made of it: for the terminal, and as a page, report.html."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.preparing.items import Listing, plain
from diffusion.preparing.report.advice import Figures, advice
from diffusion.preparing.settings import Settings
from diffusion.preparing.shards.finish import Chosen
from diffusion.preparing.shards.gather import Gathered
from diffusion.support.console import number, rows_of
from diffusion.support.files import atomic

LISTED = 20  # rows of a table in the terminal


@dataclass
class Section:
    """A table of the report; the first column is left-aligned, and `bar` is the column that is drawn as a bar."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple]
    bar: int | None = None


@dataclass
class Report:
    """What was prepared: printable, with the facts of dataset.json.

    Args:
        folder: the prepared folder.
        facts: the contents of dataset.json.
        sections: tables.
        advice: sentences.
    """

    folder: Path
    facts: dict
    sections: list[Section]
    advice: list[str]

    def __str__(self) -> str:
        parts = []
        for section in self.sections:
            rows = [tuple(map(plain, row)) for row in section.rows[:LISTED]]
            if left := len(section.rows) - len(rows):
                rows.append((f"... {left:,} more in report.html", *[""] * (len(section.head) - 1)))
            parts.append(f"{section.title}\n{rows_of([section.head, *rows])}")
        return "\n".join([*parts, *(f"advice: {plain(line)}" for line in self.advice)])


def report(found: Gathered, chosen: Chosen, facts: dict, listing: Listing, settings: Settings, handed: dict) -> Report:
    """The report of a prepared folder."""
    used, train = chosen.used, chosen.used & (chosen.split == 0)
    other = chosen.copies.first != np.arange(len(found))
    near, exact = int((other & ~chosen.copies.exact).sum()), int(chosen.copies.exact.sum())
    left_out = int((chosen.why == 3).sum())
    refused = found.items - len(found) + int(((chosen.why > 0) & (chosen.why < 3)).sum())
    form, total = found.form, int(used.sum())
    pad = found.marks.bars
    classes = {name: int((found.label[train] == k).sum()) for k, name in enumerate(found.classes)}
    figures = Figures(
        facts["images"]["train"],
        facts["images"]["test"],
        {} if settings.clusters else classes,  # clusters may be small and uneven
        int((other & used).sum()),
        chosen.crossing,
        float(((pad[used, 0] > 0.04) != (pad[used, 1] > 0.04)).mean()),
        handed,
        sum(n for note, n in found.notes.items() if note.startswith("enlarged")) / max(1, len(found)),
        listing.columns,
        refused / max(1, found.items),
        found.captions,
    )
    images = [
        ("source", listing.kind),
        ("images found", f"{found.items:,}"),
        ("in use", f"{total:,}"),
        ("train / test", f"{figures.train:,} / {figures.test:,}"),
        ("refused", f"{refused:,}"),
        ("copies (exact / near)", f"{exact:,} / {near:,}{'' if chosen.copies.complete else ' or more'}"),
        ("copies left out", f"{left_out:,}"),
        ("files that are no images of the set", f"{len(listing.skipped):,}"),
        ("stored as", f"{form.channels} x {form.height} x {form.width} {form.dtype}"),
        ("on disk", f"{len(found) * form.bytes / 2**20:,.1f} MiB"),
        ("in memory", f"{total * form.bytes / 2**20:,.1f} MiB"),
    ]
    if found.captions:
        images.append(("with a caption", f"{found.captions:,}"))
    sections = [Section(plain(facts["name"]), ("", ""), images)]
    if found.classes:
        test = found.label[chosen.used & (chosen.split == 1)]
        rows = [(name, f"{n:,}", f"{(test == k).sum():,}") for k, (name, n) in enumerate(classes.items())]
        sections.append(Section("clusters" if settings.clusters else "classes", ("", "train", "test"), rows, bar=1))
    sections += _of_the_pictures(found, facts, listing)
    if found.reasons:
        sections.append(Section("refused", ("", "images"), [(r, f"{n:,}") for r, n in _most(found.reasons)]))
    if found.refused:
        sections.append(Section("refused, file by file", ("", "reason"), list(found.refused)))
    return Report(settings.out, facts, sections, advice(figures))


def _of_the_pictures(found: Gathered, facts: dict, listing: Listing) -> list[Section]:
    """Sizes, modes, remarks, statistics."""
    sizes = [(f"{w} x {h}", f"{n:,}") for (w, h), n in _most(found.sizes)]
    values = facts["statistics"]
    keys = ("mean", "std", "low", "high")
    channels = [(str(c), *(number(values[key][c]) for key in keys)) for c in range(found.form.channels)]
    sections = [
        Section(f"sizes in the source ({len(sizes):,} different, width x height)", ("", "images"), sizes[:50]),
        Section("modes in the source", ("", "images"), [(m, f"{n:,}") for m, n in _most(found.modes)]),
        Section("stored values, train split", ("channel", "mean", "std", "low", "high"), channels),
    ]
    if found.notes:
        sections.append(Section("remarks", ("", "images"), [(n, f"{k:,}") for n, k in _most(found.notes)]))
    if listing.targets:
        rows = [
            (name, *(number(float(f(found.targets[:, k]))) for f in (np.nanmean, np.nanstd, np.nanmin, np.nanmax)))
            for k, name in enumerate(listing.targets)
        ]
        sections.append(Section("targets", ("", "mean", "std", "low", "high"), rows))
    return sections


def _most(counts) -> list[tuple]:
    """The entries of a counter, the most frequent first, in an order that does not depend on chance."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:68em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.15em .9em .15em 0;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}td+td,th+th{text-align:right}img{max-width:100%}
.bar{background:#4a7ab5;height:.8em;display:inline-block}.advice{background:#fff6dd;padding:.5em 1em}"""


def page(found: Report, sheet: Image.Image) -> str:
    """The report as HTML that needs no other file."""
    picture = io.BytesIO()
    sheet.save(picture, "PNG", optimize=True)
    name = _text(found.facts["name"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
    ]
    if found.advice:
        parts.append("<ul class=advice>" + "".join(f"<li>{_text(line)}" for line in found.advice) + "</ul>")
    for section in found.sections:
        parts.append(f"<h2>{_text(section.title)}</h2>{_table(section)}")
    data = base64.b64encode(picture.getvalue()).decode()
    parts.append(f"<h2>before and after</h2><img alt='before and after' src='data:image/png;base64,{data}'></html>\n")
    return "\n".join(parts)


def _table(section: Section) -> str:
    most = max((_value(row[section.bar]) for row in section.rows), default=0) if section.bar is not None else 0
    lines = [_row("th", section.head)] if any(section.head) else []
    for row in section.rows:
        width = round(200 * _value(row[section.bar]) / most) if most else 0
        bar = f"<td><span class=bar style='width:{width}px'></span>" if most else ""
        lines.append(_row("td", row) + bar)
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}" for cell in cells)


def _text(value: object) -> str:
    return html.escape(plain(value))


def _value(text: str) -> int:
    return int(text.replace(",", ""))


def write_page(text: str, path: Path) -> None:
    """Write the page."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
