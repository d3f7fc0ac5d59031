"""The figures of an evaluation as text, of one run or of several side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.support.console import interval, number, rows_of, shown

ARROWS = {"low": "lower is better", "high": "higher is better", "floor": "as test images"}


@dataclass(frozen=True, repr=False)
class Table:
    """The results of an evaluation: `print(table)` is the output of `diffusion evaluate`; iterating gives records.

    Attributes:
        records: one dict per run and setting, with `setting`, `figures`, `seconds`, `evaluations`, `file` and more.
        text: the formatted table; empty on all but the first of several processes.
        files: all files written, including those of the records.
        notes: the judge, warnings, and metrics left out.
    """

    records: tuple[dict[str, Any], ...]
    text: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> list[dict[str, Any]]:
        """Every figure of every record, with its setting."""
        return [figure for record in self.records for figure in record["figures"]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[index]

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def one(record: dict) -> str:
    """A table of a record's figures: value, interval, and test images beside equally many samples."""
    return f"{head(record)}\n{lines(record)}{alerts(record)}"


def lines(record: dict) -> str:
    """The rows of a record's figures with their titles."""
    most = max(f["m"] for f in record["figures"])
    rows = [("metric", "value", "95 % interval", f"{most:,} test images", "as many samples", "")]
    rows += [
        (f["metric"], number(f["value"]), interval(f), number(f["floor"]), number(f["matched"]), ARROWS[f["better"]])
        for f in record["figures"]
    ]
    return rows_of(rows)


def compared(records: list[dict], runs: list[Path]) -> str:
    """A table with one column per run; an asterisk marks a figure that is best beyond the others' intervals.

    Args:
        runs: the checkpoints of the records.
    """
    heads = [f"\n[{k}] {shown(run)}{head(r)}" for k, (run, r) in enumerate(zip(runs, records, strict=True), 1)]
    rows = [("metric", *(f"[{k}]" for k in range(1, len(records) + 1)), "test images", "")]
    for name in dict.fromkeys(f["metric"] for r in records for f in r["figures"]):
        figures = [next((f for f in r["figures"] if f["metric"] == name), None) for r in records]
        cells = [f"{number(f['value'])} ({interval(f)})" if f else "" for f in figures]
        kind = next(f for f in figures if f)
        if best := winner(figures):
            cells[best - 1] += " *"
        rows.append((name, *cells, number(kind["floor"]), ARROWS[kind["better"]]))
    note = "* better than every other beyond both intervals"
    return f"{''.join(heads)}\n{rows_of(rows)}\n  {note}{''.join(map(alerts, records))}"


def winner(figures: list[dict | None]) -> int:
    """The number, from 1, of the figure that is better than all others beyond both intervals; 0 if there is none."""
    for k, mine in enumerate(figures, 1):
        others = [f for f in figures if f is not mine]
        if mine is None or any(f is None for f in others) or mine["better"] == "floor":
            continue
        if all(mine["high"] < f["low"] if mine["better"] == "low" else mine["low"] > f["high"] for f in others):
            return k
    return 0


def head(record: dict) -> str:
    """The setting of a record, as text."""
    setting = record["setting"]
    return (
        f"\n{setting['n']:,} samples of step {setting['step']:,}: {setting['sampler']}, {setting['steps']} steps "
        f"({record['evaluations']:g} network evaluations), scale {setting['scale']:g}, {setting['weights']} weights, "
        f"seed {setting['seed']}; {record['seconds']:.0f} s on {record['machine']}"
    )


def footnote(note: str) -> str:
    """The lines below a table that state what its figures are, one per part of the note; empty without a note."""
    return "".join(f"\n  {part}" for part in note.split("; ") if part)


def alerts(record: dict) -> str:
    """The alerts of a record's figures, one per line."""
    return "".join(f"\nALERT: {f['alert']}" for f in record["figures"] if f["alert"])
