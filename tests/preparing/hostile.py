"""A folder of everything that goes wrong with pictures: each kind with what `prepare` is documented to do with it."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, TiffImagePlugin

SIDE = 32


class Kind(NamedTuple):
    """A file, the decision that is documented, and words of its reason or of its notes."""

    name: str
    data: bytes
    decision: str = "kept"
    says: str = ""


def scene(seed: int = 0, w: int = 48, h: int = 48) -> Image.Image:
    """A picture with a red spot at the top left, so that turns and flips show."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(60, 200, (6, 6, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).rectangle((0, 0, w // 4, h // 4), fill=(255, 0, 0))
    return image


def saved(image: Image.Image, kind: str, **words) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **words)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG that claims a size, with the given compressed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data or zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def exif(turn: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags.tobytes()


def kinds() -> list[Kind]:
    """All kinds; every picture differs from the others."""
    seeds = iter(range(1000))
    rgb = lambda w=48, h=48: scene(next(seeds), w, h)  # noqa: E731
    jpeg = saved(rgb(), "JPEG")
    deep = (np.asarray(rgb().convert("L"), np.uint16) * 257 + 100).astype(np.uint16)
    frames = [rgb() for _ in range(3)]
    alpha = rgb().convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize((48, 48)))
    palette = rgb().quantize(32)
    clear = rgb().quantize(32)
    clear.info["transparency"] = 0
    lab = Image.merge("LAB", rgb().split())
    tiff16 = np.asarray(rgb(), np.uint16) * 257
    nan = np.asarray(rgb(), np.float32)
    nan[3, 3] = np.nan
    text = png_header(48, 48)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 2**27)) + saved(rgb(), "PNG")[33:]
    fractions = Image.fromarray(np.asarray(rgb().convert("L"), np.float32) * 1e6)
    rows = zlib.compress(40 * (b"\0" + bytes(range(240))))
    large = Image.fromarray(np.full((48, 48), 10**6, np.int32))
    wide = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"
    found = [
        # sound, in every format and mode
        Kind("jpeg.jpg", saved(rgb(), "JPEG")),
        Kind("progressive.jpg", saved(rgb(), "JPEG", progressive=True)),
        Kind("grey.jpg", saved(rgb().convert("L"), "JPEG")),
        Kind("cmyk.jpg", saved(rgb().convert("CMYK"), "JPEG"), says="CMYK converted"),
        Kind("png.png", saved(rgb(), "PNG")),
        Kind("grey.png", saved(rgb().convert("L"), "PNG")),
        Kind("one-bit.png", saved(rgb().convert("1"), "PNG")),
        Kind("palette.png", saved(palette, "PNG")),
        Kind("palette-clear.png", saved(clear, "PNG", transparency=0), says="transparency composited"),
        Kind("rgba.png", saved(alpha, "PNG"), says="transparency composited"),
        Kind("grey-alpha.png", saved(alpha.convert("LA"), "PNG"), says="transparency composited"),
        Kind("opaque.png", saved(rgb().convert("RGBA"), "PNG")),
        Kind("sixteen.png", saved(Image.fromarray(deep), "PNG"), says="16-bit grey reduced"),
        Kind("interlaced.webp", saved(rgb(), "WEBP", lossless=True)),
        Kind("lossy.webp", saved(rgb(), "WEBP")),
        Kind("alpha.webp", saved(alpha.transpose(1), "WEBP", lossless=True), says="transparency composited"),
        Kind("bmp.bmp", saved(rgb(), "BMP")),
        Kind("gif.gif", saved(rgb(), "GIF")),
        Kind("tiff.tif", saved(rgb(), "TIFF")),
        Kind("lzw.tiff", saved(rgb(), "TIFF", compression="tiff_lzw")),
        Kind("sixteen.tif", saved(Image.fromarray(np.flip(deep).copy()), "TIFF"), says="16-bit grey reduced"),
        Kind("cmyk.tif", saved(rgb().convert("CMYK"), "TIFF"), says="CMYK converted"),
        Kind("ppm.ppm", saved(rgb(), "PPM")),
        Kind("array.npy", array(np.asarray(rgb()))),
        Kind("grey-array.npy", array(np.asarray(rgb().convert("L"))), "refused", "1 channels"),
        # sound, but something has to be said
        Kind("animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), says="first is used"),
        Kind("animated.webp", saved(rgb(), "WEBP", save_all=True, append_images=[rgb()]), says="first is used"),
        Kind("animated.png", saved(rgb(), "PNG", save_all=True, append_images=[rgb()]), says="first is used"),
        Kind("pages.tif", saved(rgb(), "TIFF", save_all=True, append_images=[rgb()]), says="first is used"),
        *(Kind(f"turn{k}.jpg", saved(rgb(64, 48), "JPEG", exif=exif(k)), says="turned upright") for k in range(2, 9)),
        Kind("turn6.png", saved(rgb(64, 48), "PNG", exif=exif(6)), says="turned upright"),
        Kind("turn9.jpg", saved(rgb(), "JPEG", exif=exif(9))),
        Kind("bad-exif.jpg", saved(rgb(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")),
        Kind("profile.jpg", saved(rgb(), "JPEG", icc_profile=b"no profile at all" * 20), says="profile ignored"),
        Kind("deep-colour.png", png_header(40, 40, 16, 2, rows), says="16-bit colour"),
        Kind("wrong.png", saved(rgb(), "JPEG")),  # named for another format: the contents decide
        Kind("wrong.gif", saved(rgb(), "TIFF")),
        Kind("UPPER.JPG", saved(rgb(), "JPEG")),
        Kind("nosuffix", saved(rgb(), "PNG"), says="first bytes"),
        Kind("odd.suffix", saved(rgb(), "JPEG"), says="first bytes"),
        Kind("trailing.png", saved(rgb(), "PNG") + b"\0" * 5000),
        Kind("long.png", saved(rgb(3000, 40), "PNG")),
        Kind("exact.png", saved(rgb(SIDE, SIDE), "PNG")),
        # names
        Kind("name with  spaces.png", saved(rgb(), "PNG")),
        Kind("new\nline.png", saved(rgb(), "PNG")),
        Kind("tab\tand\x1bescape.png", saved(rgb(), "PNG")),
        Kind("ünï çødé 猫 🐈.png", saved(rgb(), "PNG")),
        Kind("e\u0301.png", saved(rgb(), "PNG")),  # the same letter in two codes
        Kind("\u00e9.png", saved(rgb(), "PNG")),
        Kind(os.fsdecode(b"not-utf8-\xff\xfe.png"), saved(rgb(), "PNG")),
        Kind("Case.png", saved(rgb(), "PNG")),
        Kind("case.png", saved(rgb(), "PNG")),
        Kind("-dash.png", saved(rgb(), "PNG")),
        Kind("%s {} <b>&amp;.png", saved(rgb(), "PNG")),
        Kind("a" * 200 + ".png", saved(rgb(), "PNG")),
        Kind("9" * 100 + ".png", saved(rgb(), "PNG")),
        Kind("deep/" * 30 + "deep.png", saved(rgb(), "PNG")),
        # damaged
        Kind("empty.jpg", b"", "refused", "empty file"),
        Kind("truncated.jpg", jpeg[: len(jpeg) // 2], "refused", "damaged: "),
        Kind("truncated.png", saved(rgb(), "PNG")[:900], "refused", "damaged"),
        Kind("truncated.gif", saved(rgb(), "GIF")[:1200], "refused", "damaged"),
        Kind("truncated.webp", saved(rgb(), "WEBP")[:200], "refused", "damaged"),
        Kind("truncated.tif", saved(rgb(), "TIFF")[:500], "refused", "damaged"),
        Kind("truncated.bmp", saved(rgb(), "BMP")[:500], "refused", "damaged"),
        Kind("header.jpg", jpeg[:20], "refused", ""),
        Kind("flipped.png", flipped(saved(rgb(), "PNG")), "refused", "damaged"),
        Kind("text.jpg", b"this is no picture", "refused", "no image of a known kind"),
        Kind("page.jpg", b"<!DOCTYPE html><html>404", "refused", "a web page"),
        Kind("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "refused", "git lfs pull"),
        Kind("photo.heic.jpg", b"\0\0\0\x18ftypheic" + b"\0" * 40, "refused", "HEIC; convert it"),
        Kind("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "refused", "SVG"),
        Kind("zeros.png", b"\0" * 4096, "refused", "no image of a known kind"),
        Kind("bomb.png", png_header(40000, 40000), "refused", "pixels"),
        Kind("bomb.gif", wide, "refused", "pixels"),
        Kind("text-bomb.png", text, "refused", "damaged"),
        Kind("nothing.png", png_header(0, 0), "refused", ""),
        # sound, but of no use
        Kind("1x1.png", saved(rgb(1, 1), "PNG"), "refused", "1x1 is smaller than 32x32"),
        Kind("flat.png", saved(rgb(500, 20), "PNG"), "refused", "smaller"),
        Kind("float.tif", saved(fractions, "TIFF"), "refused", "saturates"),
        Kind("lab.tif", saved(lab, "TIFF")),
        Kind("thirty-two.tif", saved(large, "TIFF"), "refused", "16 bits"),
        Kind("nan.npy", array(nan), "refused", "float32 values, the others are uint8"),
        Kind("five.npy", array(np.zeros((48, 48, 5), np.uint8)), "refused", "5 channels"),
        Kind("line.npy", array(np.zeros(48, np.uint8)), "refused", "wanted (H, W)"),
        Kind("objects.npy", array(np.array([{}, []], object)), "refused", "damaged .npy"),
        # no images, and known to be none
        Kind("notes.md", b"# notes", "skipped", "no image"),
        Kind("Thumbs.db", b"\xd0\xcf\x11\xe0", "skipped", "no image"),
        Kind(".DS_Store", b"\0\0\0\1Bud1", "skipped", "hidden"),
        Kind("._png.png", b"\0\5\x16\7", "skipped", "hidden"),
        Kind("__MACOSX/png.png", b"\0\5\x16\7", "skipped", "hidden"),
        Kind("stray.zip", b"PK\3\4", "skipped", "prepare it by itself"),
        Kind("film.mp4", b"\0\0\0\x18ftypmp42", "skipped", "no image"),
        Kind("absent.txt", b"a caption of nothing", "skipped", "there is none of its name"),
        Kind("metadata.csv", b"\xff\xfe\xff no table", "skipped", ""),
        Kind("png.txt", "a caption é".encode("latin1"), "skipped", "describes the image"),
    ]  # fmt: skip
    return found + [Kind("sixteen-colour.tif", colour16(tiff16), says="16-bit colour")]


def flipped(data: bytes) -> bytes:
    """One byte of the compressed pixels changed."""
    at = data.index(b"IDAT") + 60
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def colour16(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit colours, which Pillow cannot write itself."""
    height, width = values.shape[:2]
    info = TiffImagePlugin.ImageFileDirectory_v2()
    raw = values.astype("<u2").tobytes()
    for tag, kind, value in (
        (256, 4, width), (257, 4, height), (258, 3, (16, 16, 16)), (259, 3, 1), (262, 3, 2), (273, 4, 0), (277, 3, 3),
        (278, 4, height), (279, 4, len(raw)), (284, 3, 1),
    ):  # fmt: skip
        info.tagtype[tag] = kind
        info[tag] = value
    file = io.BytesIO(b"II*\0\x08\0\0\0")
    file.seek(8)
    info.save(file)  # moves the offset of the pixels beyond itself
    return file.getvalue() + raw


def build(folder: Path) -> list[Kind]:
    """Write the folder, with links and special files; returns what is expected of each name."""
    found = kinds()
    for kind in found:
        path = folder / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kind.data)
    outside = folder.parent / "outside"
    outside.mkdir()
    scene(900).save(outside / "linked.png")
    links = {
        "link.png": outside / "linked.png", "dangling.png": "nowhere.png", "self.png": "self.png", "loop": folder,
        "twice": folder / "deep", "unreadable.png": "/proc/self/mem", "elsewhere": outside,
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    found += [
        Kind("link.png", b""),
        Kind("dangling.png", b"", "refused", "cannot be read: No such file"),
        Kind("self.png", b"", "refused", "cannot be read: Too many levels"),
        Kind("loop", b"", "skipped", "listed already"),
        Kind("twice", b"", "skipped", "listed already"),
        Kind("unreadable.png", b"", "refused", "cannot be read: Input/output error"),
        Kind("elsewhere/linked.png", b""),
        Kind("pipe.png", b"", "refused", "not a regular file"),
    ]
    if os.geteuid():  # root may read everything
        (folder / "private.png").write_bytes(saved(scene(901), "PNG"))
        (folder / "private.png").chmod(0)
        (folder / "closed").mkdir(mode=0)
        found += [Kind("private.png", b"", "refused", "cannot be read: Permission denied")]
        found += [Kind("closed", b"", "refused", "cannot be listed: Permission denied")]
    return found
