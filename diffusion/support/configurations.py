"""Configuration files: a file of the user's, or one of the package's by name."""

import difflib
from pathlib import Path

from diffusion.support.paths import CONFIGS

OPTIONS = ("-c", "--config")
INLINE = ":{\n"  # characters of a configuration that is written out on the command line, or of an address


def bundled() -> dict[str, Path]:
    """The configurations of the package by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def configuration(name: str | Path) -> Path:
    """A configuration file: the one at this path, else the package's of this name.

    "digits", "digits.yaml" and "configs/digits.yaml" name the same one of the package.

    Raises:
        FileNotFoundError: there is neither; the message has the names that are near, or the folder of all.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return path
    known = bundled()
    stem = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("configs")) and stem in known:
        return known[stem]
    near = difflib.get_close_matches(stem, known, n=4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; the package's are in {CONFIGS}"
    raise FileNotFoundError(f"config: there is no file {str(name)!r}, and no configuration of that name{hint}")


def located(argv: list[str]) -> list[str]:
    """The words of a command line with the path of each configuration file in place of its name.

    Raises:
        FileNotFoundError: see `configuration`.
    """
    words, value = [], False
    for word in argv:
        option, given, text = word.partition("=")
        if value and not any(c in word for c in INLINE):
            word = str(configuration(word))
        elif given and option in OPTIONS and not any(c in text for c in INLINE):
            word = f"{option}={configuration(text)}"
        value = word in OPTIONS
        words.append(word)
    return words
