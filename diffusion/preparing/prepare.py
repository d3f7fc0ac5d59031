"""`diffusion.prepare`: images of any kind, made ready for training once."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Literal

from diffusion.preparing.clusters import clustered, unlabelled
from diffusion.preparing.items import Listing, plain
from diffusion.preparing.report.contact import handedness, sheet, write_sheet
from diffusion.preparing.report.page import page, report, write_page
from diffusion.preparing.settings import BLOCK, FORMAT, Form, Settings, settings
from diffusion.preparing.shards import blocks as block
from diffusion.preparing.shards.cluster import absolute, spread
from diffusion.preparing.shards.crew import work
from diffusion.preparing.shards.finish import choose, write
from diffusion.preparing.shards.gather import Stored, gather
from diffusion.preparing.sources.listing import listing
from diffusion.preparing.survey import survey
from diffusion.support.console import progress, shown, tool
from diffusion.support.files import atomic, check_writable, sweep
from diffusion.support.lock import Lock
from diffusion.support.paths import run_root

DATASET = "dataset.json"
SPARE = 64 * 2**20  # bytes that must stay free


def prepare(
    source: str | Path,
    out: str | Path,
    tell: Callable[[str], None] = lambda text: None,
    *,
    size: int | str | tuple[int, int] | None = None,
    crop: Literal["center", "random", "none", "pad"] = "center",
    filter: Literal["lanczos", "bicubic"] = "lanczos",
    linear: bool = False,
    enlarge: bool = False,
    channels: Literal[0, 1, 3, 4] = 0,
    dtype: Literal["auto", "uint8", "uint16", "float32"] = "auto",
    alpha: Literal["composite", "keep"] = "composite",
    background: str = "white",
    label: str = "auto",
    caption: str = "auto",
    targets: str | Sequence[str] = (),
    key: str = "",
    layout: Literal["auto", "NHWC", "NCHW"] = "auto",
    duplicates: Literal["keep", "exact", "drop"] = "keep",
    clusters: int = 0,
    test: float | str = 0.1,
    max_bad: float | str = 0.01,
    name: str = "",
    part: str | tuple[int, int] | None = None,
    merge: bool = False,
    workers: int = 0,
    ray: str = "",
) -> Path:
    """Prepare images for training, as `diffusion prepare` does; returns the prepared folder.

    A run that was interrupted continues with the same call, and ends with the same bytes.

    Args:
        source: a folder, an archive, a file of arrays or a table, or "torchvision:NAME"; it is never changed.
        out: folder to write.
        tell: receives the report and what comes next, as text.
        size: pixels, one number for a square or (height, width); by default that of the images if they share one.
        crop: how other ratios of the sides are met: the middle part, a part that the file's hash chooses, the sides
            scaled differently, or bars.
        filter: of the antialiased resizing.
        linear: resize in linear light.
        enlarge: enlarge images that are smaller than `size`, which are refused otherwise.
        channels: 1 grey, 3 RGB, 4 RGBA; 0: what the images have.
        dtype: of the stored images.
        alpha: composite transparency on the background, or keep it as a fourth channel.
        background: colour behind transparency and of bars, by name or as #rrggbb.
        label: column or array of the class, "folders", or "none".
        caption: column of the text, or "none".
        targets: number columns or arrays to condition on.
        key: array of a .npz or HDF5 file, or image column of a Parquet file.
        layout: of arrays with four dimensions.
        duplicates: leave out equal pictures ("exact"), nearly equal ones, too ("drop"), or none.
        clusters: number of clusters of the training images, which become the classes in place of labels; 0: none.
        test: fraction of the test split, in [0, 1), unless the source has a split of its own.
        max_bad: fraction of the images that may be refused, or "1%".
        name: of the data set; by default that of the folder.
        part: (k, n) or "k/n": make one of n parts.
        merge: join the parts, once all are made.
        workers: processes; 0: one per core. 1 works in this process.
        ray: address of a Ray cluster that does the work, or "local"; all its nodes share `source` and `out`.
    Raises:
        ValueError: a wrong argument, a source that cannot be read, or too many refused images (docs/data.md).
        OSError: no such source, or too little space.
        ImportError: a package of the extra `data` or `ray` is missing.
    """
    words = {k: v for k, v in locals().items() if k not in ("source", "out", "tell")}
    return run(settings(source, out, **words), tell)


def run(asked: Settings, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Do what the settings ask; returns the prepared folder."""
    out = asked.out
    check_place(asked)
    if (out / DATASET).exists():
        same(asked)
        tell(f"{shown(out)}: prepared already; delete it if the source has changed")
        return out
    lock = claim(asked)
    try:
        named = replace(asked, source=absolute(asked.source)) if asked.ray else asked
        found = listing(named, out.absolute() / block.WORK)
        form = survey(found, asked)
        begin(asked, found, form)
        numbers = range(-(-len(found) // BLOCK))
        make_all(asked, found, form, numbers)
        if asked.part:
            tell(f"part {asked.part[0]} of {asked.part[1]} is done; once all are: the same command with --merge")
            return out
        whole = gather(out, numbers, form, found.classes, len(found.targets))
        check_bad(asked, whole.items, whole.refused)
        whole, stored = unlabelled(whole) if asked.clusters else whole, Stored(out, whole.shards)
        chosen = choose(whole, stored, asked)
        handed = handedness(whole, chosen, stored)  # not of clusters: mirror images may be in another one
        if asked.clusters:
            whole = clustered(whole, chosen, stored, asked.clusters)
        facts = write(whole, chosen, found, numbers, asked)
        said = report(whole, chosen, facts, found, asked, handed)
        picture = sheet(whole, chosen, found, stored, asked)
        write_sheet(picture, out / "contact.png")
        write_page(page(said, picture), out / "report.html")
        with atomic(out / DATASET) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    except KeyboardInterrupt:
        tell("interrupted; the same command continues")
        raise
    finally:
        lock.release()
    shutil.rmtree(out / block.WORK)
    tell(str(said))
    tell(onward(out))
    return out


def onward(out: Path) -> str:
    """Where the result is, and the commands that come next."""
    diffusion, folder = tool("diffusion"), quote(str(shown(out)))
    return "\n".join([
        f"written: {folder}, with report.html, contact.png and manifest.jsonl",
        "next:",
        f"  {diffusion} fit --data {folder}",
        f"  {diffusion} evaluate {quote(str(shown(run_root() / out.resolve().name)))}",
    ])  # fmt: skip


def check_place(asked: Settings) -> None:
    """Check that the output can lie where it is asked for.

    Raises:
        ValueError: it lies in the source, or in a folder that holds something else.
        OSError: it cannot be written.
    """
    out, source = asked.out.resolve(), Path(asked.source).expanduser()
    if source.exists() and (out == source.resolve() or out.is_relative_to(source.resolve()) and source.is_dir()):
        raise ValueError(f"--out {asked.out}: lies in the source, which is never changed; choose another place")
    if source.exists() and source.resolve().is_relative_to(out):
        raise ValueError(f"--out {asked.out}: the source lies in it; choose another place")
    if out.is_file():
        raise ValueError(f"--out {asked.out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / DATASET).exists() and not (out / block.WORK).exists():
        raise ValueError(f"--out {asked.out}: holds other files; give a new or an empty folder")
    check_writable(out / DATASET)


def same(asked: Settings) -> None:
    """Check that a complete folder was prepared in the same way.

    Raises:
        ValueError: it was prepared otherwise.
    """
    try:
        before = json.loads((asked.out / DATASET).read_text())["settings"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{asked.out / DATASET}: damaged; delete the folder and prepare it again") from None
    before = {"clusters": 0} | before  # of older folders, which have none
    if changed := [name for name, value in asked.words.items() if before.get(name) != value]:
        name = changed[0]
        raise ValueError(
            f"--out {asked.out}: prepared already, with {name} {before.get(name)} instead of {asked.words[name]}; "
            "choose another place, or delete it"
        )


def claim(asked: Settings) -> Lock:
    """The lock on a folder in work; parts of one data set work side by side.

    Raises:
        ValueError: another process has it.
    """
    place = asked.out / block.WORK
    if asked.part:
        place /= "part-{}-of-{}".format(*asked.part)
    place.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(place)
    except BlockingIOError:
        raise ValueError(
            f"{asked.out}: another process is preparing it; wait for it, or choose another --out"
        ) from None
    if not asked.part:
        sweep(asked.out)
    return lock


def begin(asked: Settings, found: Listing, form: Form) -> None:
    """Note what is prepared, or check that it is what was begun before.

    Raises:
        ValueError: other settings, or another source.
    """
    path = asked.out / block.WORK / "settings.json"
    mine = json.loads(json.dumps({"format": FORMAT, "form": form, "listing": found.fingerprint, **asked.of_shards}))
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(mine, indent=1))
        return
    before = json.loads(path.read_text())
    if before != mine:
        name = next(n for n in [*asked.of_shards, "listing", "form", "format"] if before.get(n) != mine.get(n))
        what = "from a source that has changed since" if name == "listing" else f"with {name} {before.get(name)}"
        raise ValueError(f"--out {asked.out}: begun {what}; delete it to start anew, or choose another place")


def make_all(asked: Settings, found: Listing, form: Form, numbers: Sequence[int]) -> None:
    """Make every block that is not finished; of a part its own, and with --merge none.

    Raises:
        ValueError: too many images are refused, or blocks are missing that other parts make.
        OSError: too little space.
    """
    out = asked.out
    mine = [n for n in numbers if not asked.part or n % asked.part[1] == asked.part[0] - 1]
    missing = [n for n in mine if not block.finished(out, n)]
    if asked.merge and missing:
        said = f"{len(missing)} of {len(numbers)} blocks are missing, e.g. {missing[0]}"
        raise ValueError(f"--merge: {said}; run all parts first")
    check_space(out, len(missing) * BLOCK * form.bytes)
    total, left = (sum(min(BLOCK, len(found) - n * BLOCK) for n in some) for some in (mine, missing))
    refused = 0
    with progress(total, what="preparing", unit="img", done=total - left) as bar:
        crew = spread if asked.ray else work
        for kept, bad in crew(missing, lambda n: found.items(n * BLOCK, (n + 1) * BLOCK), form, asked):
            bar.update(kept + bad)
            refused += bad
            if refused > asked.max_bad * len(found):
                done = [n for n in mine if block.finished(out, n)]
                whole = gather(out, done, form, found.classes, len(found.targets))
                check_bad(asked, len(found), whole.refused)


def check_bad(asked: Settings, items: int, refused: Sequence[tuple[str, str]]) -> None:
    """Check that not too many images were refused.

    Raises:
        ValueError: there were; the message has the commonest reasons.
    """
    if len(refused) > asked.max_bad * items:
        common = Counter(reason for _, reason in refused).most_common(3)
        example = {reason: name for name, reason in reversed(refused)}
        said = "; ".join(f"{n} x {reason} ({plain(example[reason])})" for reason, n in common)
        raise ValueError(
            f"{len(refused):,} of {items:,} images were refused, more than --max-bad {asked.max_bad:.3g}: {said}; "
            "mend the source, or allow more, e.g. --max-bad 10%"
        )


def check_space(folder: Path, needed: int) -> None:
    """Check that a folder's disk has room.

    Raises:
        OSError: it does not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise OSError(
            f"{folder}: {needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free; free some space, or "
            "choose another --out"
        )
