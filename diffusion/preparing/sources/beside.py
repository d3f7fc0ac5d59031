"""Small files beside an image: its caption as .txt, its class as .cls, both and numbers in .json."""

import json

from diffusion.preparing.items import LABELS, TEXTS, Item, Refused
from diffusion.preparing.sources.named import sample
from diffusion.preparing.sources.reading import read
from diffusion.preparing.sources.samples import fields

BESIDE = (".txt", ".caption", ".cls", ".json")
LONGEST = 100_000  # characters of a caption


def facts(item: Item, notes: list[str]) -> dict:
    """Label, caption, targets and split of an item, of the listing and of the files beside it."""
    found = {"label": item.label, "caption": item.caption, "targets": item.targets, "split": item.split}
    for kind, place in item.beside:
        if kind == "torchvision":
            found["label"] = sample(*place[1:])[1]
            continue
        if kind == "sample":
            found |= fields(*place)
            continue
        try:
            text = read(place).decode("utf-8-sig").strip()
        except (Refused, UnicodeDecodeError):
            notes.append(f"{kind} beside it cannot be read as UTF-8")
            continue
        if kind in (".txt", ".caption"):
            found["caption"] = text if found["caption"] is None else found["caption"]
        elif kind == ".cls":
            found["label"] = text if found["label"] is None else found["label"]
        else:
            _from_json(text, found, notes)
    if found["caption"] and len(found["caption"]) > LONGEST:
        found["caption"] = found["caption"][:LONGEST]
        notes.append(f"caption cut to {LONGEST:,} characters")
    return {name: value for name, value in found.items() if value is not None}


def _from_json(text: str, found: dict, notes: list[str]) -> None:
    """Fill what is still missing from an object of JSON."""
    try:
        given = json.loads(text)
    except ValueError:
        notes.append(".json beside it cannot be read")
        return
    if not isinstance(given, dict):
        return
    for into, names in (("caption", TEXTS), ("label", LABELS)):
        value = next((given[n] for n in names if isinstance(given.get(n), str | int)), None)
        if found[into] is None and value is not None:
            found[into] = str(value)
