"""`--data FOLDER`: a configuration that suits a prepared folder of images, at a path or an address."""

import json
from pathlib import Path
from typing import Any

from diffusion.data.facts import FACTS
from diffusion.data.prepared import Prepared
from diffusion.data.remote import Address, is_address

FILES = ("-c", "--config")
SEEN = 4_000_000  # training images over all epochs
EPOCHS = (10, 1000)


def suited(argv: list[str]) -> list[str]:
    """The words of `diffusion fit` with `--data FOLDER` written out; others are unchanged.

    An address may take the place of a folder. The experiment (the folder's name) and, unless there is a configuration
    file, `settings` come first, so that whatever is given overrides them.

    Raises:
        ValueError: the folder was not made by `diffusion prepare`.
        OSError: the address cannot be reached, or has no prepared folder.
    """
    rest, named = [], None
    words = [w for word in argv for w in (word.split("=", 1) if word.startswith("--data=") else [word])]
    following = iter(words)
    for word in following:
        if word == "--data" and (value := next(following, None)) is not None:
            named = value
            rest += [] if (folder := prepared(value)) else [word, value]
        else:
            rest.append(word)
    if named is None or not (folder := prepared(named)):
        return argv
    files = [i + 1 + (word in FILES) for i, word in enumerate(rest) if word.split("=")[0] in FILES]
    chosen = {"experiment": folder.name}
    if not files:
        data = Prepared(str(folder), y=given(rest, "data.y") or "auto")
        chosen |= settings(data.facts, data.conditions == "words")
    front = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in chosen.items()]
    at = max(files, default=0)
    return [*front, *rest[:at], "--data=Prepared", f"--data.folder={folder}", *rest[at:]]  # a file's data gives way


def given(words: list[str], option: str) -> str:
    """The value that an option has on a command line, the last if there are several; "" without one."""
    values = [
        word.partition("=")[2] or following
        for word, following in zip(words, [*words[1:], ""], strict=False)
        if word.partition("=")[0] == f"--{option}"
    ]
    return values[-1] if values else ""


def prepared(value: str) -> Path | Address | None:
    """The prepared folder, or the address, that the value of `--data` names; None for the name of a class.

    Raises:
        ValueError: a folder that has not been prepared.
    """
    if is_address(value):
        return Address(value)
    if value.startswith("{"):
        return None  # a class with its arguments; longer than a file system's names may be
    folder = Path(value).expanduser()
    if not folder.is_dir() or value.isidentifier() and not (folder / FACTS).is_file():
        return None
    folder = folder.resolve()
    if not (folder / FACTS).is_file():
        raise ValueError(
            f"--data {value}: a folder without {FACTS}; prepare its images first: diffusion prepare {value} --size 64 "
            f"--out data/{folder.name}"
        )
    return folder


def settings(facts: dict[str, Any], words: bool = False) -> dict[str, Any]:
    """Options of `diffusion fit` for a prepared folder, by its size, number of images, and labels.

    Images with classes, or conditioned on the words of their captions, have classifier-free guidance.

    Up to 16 pixels the network is the one of configs/digits.yaml, above it a `UNet` with attention where no side is
    longer than 16 pixels, or 32 at its lowest level. It has as many levels as the sides can be halved, down to 4. The
    options depend on the data alone, not on the machine.
    """
    channels, height, width = facts["shape"]
    levels = halvings(height, width)
    images = facts["images"]["train"]
    chosen: dict[str, Any] = {
        "trainer.max_epochs": min(max(round(SEEN / images), EPOCHS[0]), EPOCHS[1]),
        "trainer.check_val_every_n_epoch": 1,
        "model.schedule": "Cosine",
        "model.target": "V",
        "model.objective.times": "Stratified",
        "model.lr": 1e-3,
        "model.betas": [0.9, 0.99],
        "model.warmup": 500,
        "model.decay": "cosine",
        "samples.every_n_epochs": 1,
    }
    if max(height, width) <= 16 and levels >= 3:
        chosen |= {"model.net": "AttentionUNet", "model.net.widths": [32, 64, 64], "model.net.heads": 2}
        chosen |= {"model.net.ones": True}
    else:
        mults = [1, 2, 2, 2, 3, 3, 4][: max(levels, 1)]
        sides = [max(height, width) / 2**level for level in range(len(mults))]
        attention = [level for level, side in enumerate(sides) if side <= 16 or side == sides[-1] <= 32]
        chosen |= {"model.net": "UNet", "model.net.width": 32, "model.net.mults": mults}
        chosen |= {"model.net.head_width": 32, "model.net.attention": attention}
    if facts["classes"] or words:
        chosen |= {"model.guidance": "ClassifierFree", "model.guidance.scale": 1.5}
    return chosen


def halvings(*sides: int) -> int:
    """The number of levels of a U-Net for images with these sides: 1 + how often all can be halved, down to 4."""
    levels = 1
    while all(side % 2**levels == 0 and side // 2**levels >= 4 for side in sides):
        levels += 1
    return levels
