"""watch.csv, the log of the machine in a run's folder: written, read, and summarised as text."""

import csv
import io
import time
from pathlib import Path

from diffusion.support import gauges, lock, runs
from diffusion.support.console import clock, number, rows_of, shown
from diffusion.support.files import atomic
from diffusion.support.gauges import FIGURES, Figures

FILE = "watch.csv"  # of the first process; of process n of several, watch-n.csv
PLOT = "watch.png"
KEYS = ("time", "step")  # seconds since 1970, and optimizer steps


def name_of(rank: int) -> str:
    """The file of a process."""
    return FILE if not rank else f"watch-{rank}.csv"


def append(path: Path, row: Figures) -> None:
    """Add a row, and its new columns if it has any (a run resumed on another machine).

    Raises:
        OSError: the file cannot be written.
    """
    columns, whole = _head(path)
    wanted = [*KEYS, *FIGURES]
    if more := row.keys() - set(columns):
        columns, whole = sorted({*columns, *more}, key=wanted.index), True
        lines = [",".join(columns), *(_line(old, columns) for old in read(path))]
        with atomic(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n")
    with open(path, "a") as file:
        file.write(("" if whole else "\n") + _line(row, columns) + "\n")


def _head(path: Path) -> tuple[list[str], bool]:
    """The columns of a file, and whether its last line is complete, which a kill may prevent."""
    if not path.exists() or not path.stat().st_size:
        return [], True
    with open(path, "rb") as file:
        columns = file.readline().decode().strip().split(",")
        file.seek(-1, 2)
        return columns, file.read(1) == b"\n"


def _line(row: Figures, columns: list[str]) -> str:
    said = io.StringIO()
    digits = {"time": ".3f", "step": ".0f"}
    cells = [row.get(k, "") for k in columns]
    text = [v if isinstance(v, str) else f"{v:{digits.get(k, '.6g')}}" for k, v in zip(columns, cells, strict=True)]
    csv.writer(said, lineterminator="").writerow(text)
    return said.getvalue()


def read(path: Path) -> list[Figures]:
    """The rows of a file without their empty cells; a line that was cut short is left out."""
    if not path.is_file():
        return []
    header, *lines = list(csv.reader(path.read_text().splitlines())) or [[]]
    found = []
    for line in lines:
        if len(line) == len(header):
            cells = {k: v for k, v in zip(header, line, strict=True) if v}
            found.append({k: v if k == "gpu_slowed" else float(v) for k, v in cells.items()})
    return found


def files(run: Path) -> list[Path]:
    """The files of a run, that of the first process first."""
    more = sorted(run.glob("watch-*.csv"), key=lambda p: (len(p.name), p.name))
    return [p for p in (run / FILE, *more) if p.is_file()]


def located(path: str | Path) -> Path:
    """The run that a path names: itself, or the newest run of an experiment.

    Raises:
        FileNotFoundError: there is no run.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        folder = runs.directory(folder)
    found = [folder, *reversed(runs.versions(folder))] if folder.is_dir() else []
    for run in found:
        if files(run) or (run / "config.yaml").is_file():
            return run
    raise FileNotFoundError(f"{path}: no such run; name its folder, or its experiment's")


def summary(rows: list[Figures]) -> list[tuple[str, str, str, str]]:
    """For each figure of some rows: what it is, its newest value, its mean and its largest value."""
    found = [("", "newest", "mean", "largest")]
    for name, (text, unit) in FIGURES.items():
        values = [row[name] for row in rows if name in row]
        label = f"{text}, {unit}" if unit else text
        if name == "gpu_slowed" and values:
            slow = [v for v in values if v != gauges.NOT_SLOWED]
            found.append((label, str(values[-1]), f"{len(slow) / len(values):.0%} of rows", max(slow, default="")))
        elif values:
            found.append((label, *(number(v) for v in (values[-1], sum(values) / len(values), max(values)))))
    return found


def of_run(run: Path, now: float | None = None) -> str:
    """The log of a run as text.

    Args:
        now: seconds since 1970; the present by default.
    """
    now = time.time() if now is None else now
    state = "training" if lock.held(run) else "not training"
    said = []
    for path in files(run):
        rows = read(path)
        if rows:
            age = clock(max(0.0, now - rows[-1]["time"]))
            head = f"{shown(path)}: {state}, step {rows[-1]['step']:,.0f}, {len(rows):,} rows, the newest {age} ago"
            said += [head, rows_of(summary(rows))]
    return "\n".join(said or [f"{shown(run)}: {state}; nothing is recorded yet (a row every --watch.every seconds)"])


class Machine:
    """The present figures of this machine as text; cores are the mean since the last text."""

    def __init__(self) -> None:
        self.boards, self.psutil = gauges.boards(), gauges.Host().psutil
        if self.psutil is not None:
            self.psutil.cpu_percent(None)  # the first call begins the interval

    def text(self) -> str:
        """One line for the processors and the memory, one for each GPU."""
        lines = []
        if self.psutil is not None:
            cores, found = self.psutil.cpu_count() or 1, gauges.memory(self.psutil)
            used = self.psutil.cpu_percent(None) / 100 * cores
            parts = [f"{used:.1f} of {cores} cores in use"]
            if "available_mib" in found:
                total = self.psutil.virtual_memory().total
                parts.append(f"{gib(found['available_mib'])} of {gib(total / gauges.MIB)} GiB available")
            if "cpu_mhz" in found:
                parts.append(f"{found['cpu_mhz']:,.0f} MHz")
            lines.append(f"machine: {', '.join(parts)}")
        lines += [f"GPU {k}: {board.name}{described(board)}" for k, board in enumerate(self.boards)]
        return "\n".join(lines or ["machine: nothing can be read; pip install psutil"])


def described(board: gauges.Board) -> str:
    """The present figures of a GPU, in words that follow its name."""
    found, most = board.read(), board.limits()
    parts = [f"{found[k]:,.0f} {FIGURES[k][1]}{text}" for k, text in (
        ("gpu_busy_percent", " busy"), ("gpu_celsius", ""), ("gpu_sm_mhz", "")) if k in found]  # fmt: skip
    if "gpu_watts" in found:
        limit = f" of {most['gpu_watts']:,.0f}" if "gpu_watts" in most else ""
        parts.append(f"{found['gpu_watts']:,.0f}{limit} W")
    if "gpu_used_mib" in found:
        limit = f" of {gib(most['gpu_used_mib'])}" if "gpu_used_mib" in most else ""
        parts.append(f"{gib(found['gpu_used_mib'])}{limit} GiB in use")
    if found.get("gpu_slowed", gauges.NOT_SLOWED) != gauges.NOT_SLOWED:
        parts.append(f"slowed by {found['gpu_slowed']}")
    return "".join(f", {part}" for part in parts)


def gib(mib: float) -> str:
    """Mebibytes as gibibytes."""
    return f"{mib / 1024:,.1f}"
