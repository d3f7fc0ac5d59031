"""Files with paths, of a folder or an archive, as items: classes, splits, captions and columns of metadata."""

from collections import defaultdict
from collections.abc import Iterable

from diffusion.preparing.items import Item, Listed, Listing, natural
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources.beside import BESIDE
from diffusion.preparing.sources.folders import IMAGES, Entry, container, stem, suffix
from diffusion.preparing.sources.metadata import NAMES, Table, read_tables
from diffusion.preparing.sources.reading import head

SPLITS = {"train": 0, "training": 0, "test": 1, "testing": 1, "val": 1, "valid": 1, "validation": 1}
SIGNS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")
ARRAYS = (".npy",)


def tree(entries: Iterable[Entry], skipped: list[tuple[str, str]], settings: Settings, kind: str) -> Listing:
    """The listing of files with paths.

    Args:
        entries: all files, in canonical order.
        skipped: what was left out before, as (name, reason).
        kind: a description of the source.
    """
    entries, skipped = list(entries), list(skipped)
    images, others = [], []
    for entry in entries:
        reason = unwanted(entry)
        (others if reason else images).append(entry)
    tables = read_tables([e for e in others if e.name.rpartition("/")[2].lower() in NAMES], settings)
    labels, splits = placed([e.name for e in images], settings)
    beside = defaultdict(list)
    for entry in others:
        if suffix(entry.name) in BESIDE:
            beside[stem(entry.name)].append((suffix(entry.name), entry.place))
    found, used = [], set()
    for entry in images:
        row = tables.row(entry.name)
        near = () if entry.problem else tuple(beside.get(stem(entry.name), ()))
        used.update(stem(entry.name) for _ in near[:1])
        label = row.label if row.label is not None else labels.get(entry.name)
        notes = () if suffix(entry.name) in IMAGES | set(ARRAYS) else ("an image by its first bytes alone",)
        split = row.split if row.split is not None else splits.get(entry.name)
        found.append(
            Item(
                entry.name, entry.place, entry.bytes, label, row.caption, row.targets, split, near, entry.problem, notes
            )
        )
    for name, table in tables.absent():
        found.append(Item(name, ("file", name), -1, problem=f"named in {table}, but not there"))
    found.sort(key=lambda item: natural(item.name))
    skipped += [(e.name, _reason(e, used, tables)) for e in others]
    return Listing(
        [Listed(found)],
        sorted(skipped, key=lambda s: natural(s[0])),
        _classes(labels, tables, settings),
        tables.targets,
        tables.columns,
        kind,
    )


def unwanted(entry: Entry) -> str | None:
    """Why a file is no image of the data set, from its name and, where that says nothing, its first bytes."""
    parts = entry.name.split("/")
    if any(p.startswith(".") and p not in (".", "..") or p == "__MACOSX" for p in parts):
        return "hidden"
    if suffix(entry.name) in (*IMAGES, *ARRAYS) or entry.problem and not suffix(entry.name):
        return None
    if suffix(entry.name) in BESIDE or parts[-1].lower() in NAMES:
        return "about other files"
    if entry.problem:
        return entry.problem
    if container(entry.name):
        return "may hold several images: prepare it by itself"
    first = head(entry.place)
    if first.startswith(SIGNS) or first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return None
    return "no image"


def _reason(entry: Entry, used: set[str], tables: Table) -> str:
    """Why a file is not among the items."""
    reason = unwanted(entry)
    if reason != "about other files":
        return reason
    if entry.name in tables.problems:
        return tables.problems[entry.name]
    if entry.name in tables.names:
        return "metadata"
    if stem(entry.name) in used:
        return "describes the image of its name"
    return "describes no image: there is none of its name"


def placed(names: list[str], settings: Settings) -> tuple[dict[str, str], dict[str, int]]:
    """The class and the split of each image, as its folders say.

    Folders that all images share are passed over. Then come train and test (val, validation), if every image lies in
    one of them; both must be there to count as a split. Then come the classes, if every image lies in one of at least
    two folders.
    """
    paths = {name: name.split("/")[:-1] for name in names}
    _strip(paths)
    splits = {}
    first = {p[0].lower() if p else "" for p in paths.values()}
    if first and first <= SPLITS.keys():
        if len({SPLITS[f] for f in first}) == 2:
            splits = {name: SPLITS[p[0].lower()] for name, p in paths.items()}
        paths = {name: p[1:] for name, p in paths.items()}
        _strip(paths)
    if settings.label not in ("auto", "folders") or not all(paths.values()) or len({p[0] for p in paths.values()}) < 2:
        return {}, splits
    return {name: p[0] for name, p in paths.items()}, splits


def _strip(paths: dict[str, list[str]]) -> None:
    """Remove the leading folders that all paths share."""
    while paths and all(paths.values()) and len({p[0] for p in paths.values()}) == 1:
        if next(iter(paths.values()))[0].lower() in SPLITS:
            return
        for name in paths:
            paths[name] = paths[name][1:]


def _classes(labels: dict[str, str], tables: Table, settings: Settings) -> tuple[str, ...]:
    """The names of classes that folders declare, in natural order; those of metadata come with the records."""
    return () if tables.labels else tuple(sorted(set(labels.values()), key=natural))
