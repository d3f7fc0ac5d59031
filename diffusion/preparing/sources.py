"""From SOURCE, whatever it is, to the listing of its items."""

from pathlib import Path

from diffusion.preparing.folders import walk
from diffusion.preparing.items import Listing
from diffusion.preparing.settings import Settings
from diffusion.preparing.tree import tree


def listing(settings: Settings) -> Listing:
    """The items of a source.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file of another kind.
    """
    path = Path(settings.source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{settings.source}: no such file or folder")
    if path.is_dir():
        return tree(*walk(path), settings, "folder")
    raise ValueError(f"{settings.source}: a {path.suffix or 'file'} is no source")
