"""From SOURCE, whatever it is, to the listing of its items."""

import re
import zipfile
from pathlib import Path

from diffusion.preparing.items import Item, Listed, Listing, natural
from diffusion.preparing.settings import Settings
from diffusion.preparing.sources.archives import tar_entries, unpacked, zip_entries
from diffusion.preparing.sources.arrays import array_listing, split_of
from diffusion.preparing.sources.folders import BATCH, TARS, Entry, container, walk
from diffusion.preparing.sources.named import PREFIX, named_listing
from diffusion.preparing.sources.streams import stream_listing
from diffusion.preparing.sources.tables import parquet_listing
from diffusion.preparing.sources.tree import tree, unwanted

KINDS = "a folder, .zip, .tar(.gz|.bz2|.xz), .parquet, .npy, .npz, .h5, or torchvision:NAME"


def listing(settings: Settings, work: Path) -> Listing:
    """The items of a source.

    Args:
        work: folder for what has to be unpacked.
    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file of another kind, or a damaged one.
    """
    if settings.source.startswith(PREFIX):
        return named_listing(settings)
    path = Path(settings.source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{settings.source}: no such file or folder; wanted {KINDS}")
    if not path.is_dir():
        if not container(path.name):
            raise ValueError(f"{settings.source}: wanted {KINDS}")
        return contents(path, path.name, work, settings)
    entries, skipped = walk(path)
    return (
        stream_listing(entries, skipped, work, settings)
        or several(entries, skipped, work, settings)
        or tree(entries, skipped, settings, "folder")
    )


def contents(path: Path, name: str, work: Path, settings: Settings) -> Listing:
    """The items of one file that holds several.

    Args:
        name: of the file within the source.
    Raises:
        ValueError: it is damaged, or holds no images.
    """
    lower = name.lower()
    if lower.endswith(".parquet"):
        return parquet_listing(path, name, split_of(name), settings)
    if lower.endswith(TARS):
        entries, skipped = tar_entries(path, work)
    elif lower.endswith(".zip"):
        entries, skipped = zip_entries(path), []
        if inner := _inner(path, entries, work):
            return several(inner, [], work, settings)
    else:
        return array_listing(path, name, work, settings)
    inner = [e for e in entries if re.fullmatch(BATCH, Path(e.name).name)] if lower.endswith(TARS) else []
    if inner:  # as in cifar-10-python.tar.gz
        return several([_unpacked_part(path, e, work) for e in inner], skipped, work, settings)
    return tree(entries, skipped, settings, "tar archive" if lower.endswith(TARS) else "zip archive")


def several(entries: list[Entry], skipped: list, work: Path, settings: Settings) -> Listing | None:
    """The items of many such files, one after the other; None if there are images beside them, or no such files.

    A .npy in a folder counts as one image if it has two or three dimensions.
    """
    inside = [e for e in entries if not e.problem and container(e.name) and unwanted(e) != "hidden" and not _single(e)]
    names = {e.name for e in inside}
    rest = [(e.name, unwanted(e)) for e in entries if e.name not in names] if inside else []
    if not inside or any(reason is None for _, reason in rest):
        return None
    groups, parts, skipped = [], [], [*skipped, *rest]
    for entry in inside:
        try:
            found = contents(Path(entry.place[1]), entry.name, work, settings)
        except ValueError as error:
            if settings.key or len(inside) == 1:
                raise
            groups.append(Listed([Item(entry.name, entry.place, entry.bytes, problem=str(error))]))
            continue
        parts.append(found)
        groups += [_named(g, entry.name, split_of(entry.name)) for g in found.groups]
        skipped += [(f"{entry.name}/{name}", reason) for name, reason in found.skipped]
    classes = parts[0].classes if parts else ()
    if any(p.classes != classes for p in parts):
        classes = tuple(sorted({c for p in parts for c in p.classes}, key=natural))
    first = parts[0] if parts else Listing([])
    return Listing(groups, skipped, classes, first.targets, first.columns, f"{len(inside)} files, {first.kind}")


def _single(entry: Entry) -> bool:
    """Whether a .npy holds one image: two or three dimensions."""
    from numpy.lib import format as npy

    if not entry.name.lower().endswith(".npy") or entry.place[0] != "file":
        return False
    try:
        with open(entry.place[1], "rb") as file:
            version = npy.read_magic(file)
            return len((npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)[0]) < 4
    except (OSError, ValueError):
        return True


def _named(group: object, name: str, split: int | None) -> object:
    """A group of files within an archive, with the archive's name and split."""
    if not isinstance(group, Listed):
        return group
    return Listed(
        [i._replace(name=f"{name}/{i.name}", split=split if i.split is None else i.split) for i in group.found]
    )


def _inner(path: Path, entries: list[Entry], work: Path) -> list[Entry]:
    """The files of arrays in a zip archive that holds such files, unpacked: ImageNet-64's parts are that."""
    inside = [e for e in entries if e.name.lower().endswith(".npz") or re.fullmatch(BATCH, Path(e.name).name)]
    if not inside:
        return []
    found = []
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for entry in inside:
            file = unpacked(path, entry.name, work, lambda e=entry: archive.open(members[e.place[2]]))
            found.append(entry._replace(place=("file", str(file))))
    return found


def _unpacked_part(path: Path, entry: Entry, work: Path) -> Entry:
    """A member of a tar archive as a file of its own."""
    import io

    from diffusion.preparing.sources.reading import read

    file = unpacked(path, entry.name, work, lambda: io.BytesIO(read(entry.place)))
    return entry._replace(place=("file", str(file)))
