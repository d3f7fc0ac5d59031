"""Write the fixtures of test_streams.py with the packages themselves: mosaicml-streaming 0.13.0 and litdata 0.2.76.

python tests/preparing/written/write.py, in an environment that has both; the tests read what it wrote.
"""

import io
import shutil
from pathlib import Path

import numpy as np
import torch
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from streaming import MDSWriter

HERE = Path(__file__).parent


def image(seed: int) -> np.ndarray:
    """A picture of 8x8 pixels, as test_streams.py draws it."""
    return np.add.outer(np.arange(8) * 9 + 20 * seed, np.arange(24) * 5).astype(np.uint8).reshape(8, 8, 3)


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def mds(name: str, columns: dict[str, str], samples: list[dict], size: int = 900, **words) -> None:
    with MDSWriter(out=str(HERE / name), columns=columns, size_limit=size, **words) as out:
        for sample in samples:
            out.write(sample)


def lit(name: str, samples: list, **words) -> None:
    (HERE / name).mkdir()
    out = BinaryWriter(str(HERE / name), chunk_size=5, **words)
    for k, sample in enumerate(samples):
        out[k] = sample
    out.done()
    out.merge()


def main() -> None:
    for folder in HERE.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    n = range(8)
    text = [f"number {k} é" for k in n]
    mds("png", {"label": "int", "image": "png", "caption": "str", "age": "float32"},
        [{"label": k % 3, "image": Image.fromarray(image(k)), "caption": text[k], "age": k / 4} for k in n],
        hashes=["sha1", "xxh64"])  # fmt: skip
    mds("pil", {"x": "pil", "cls": "str"}, [{"x": Image.fromarray(image(k)), "cls": "ab"[k % 2]} for k in n])
    mds("bytes", {"img": "bytes", "y": "uint8"}, [{"img": encoded(image(k), "PNG"), "y": k % 2} for k in n])
    photos = [{"image": Image.fromarray(image(k)), "class": k % 2} for k in n]
    mds("jpeg", {"image": "jpeg", "class": "str_int"}, photos, size=9000)
    for k, form in enumerate(("ndarray", "ndarray:uint8", "ndarray:uint8:8,8,3")):
        mds(f"ndarray{k}", {"image": form, "label": "int64"}, [{"image": image(k), "label": 1} for k in n])
    for kind in ("zstd", "gz", "bz2"):
        mds(kind, {"image": "ndarray:uint8:8,8,3"}, [{"image": image(k)} for k in n], compression=kind, hashes=["md5"])
    lit("lit-bytes", [{"image": encoded(image(k), "PNG"), "label": k % 3, "caption": text[k], "age": k / 4} for k in n])
    lit("lit-pil", [(Image.fromarray(image(k)), "ab"[k % 2]) for k in n])
    jpeg = lambda k: Image.open(io.BytesIO(encoded(image(k), "JPEG")))  # noqa: E731
    lit("lit-jpeg", [{"image": jpeg(k), "y": k % 2} for k in n])
    lit("lit-numpy", [{"image": image(k), "y": k % 2 == 0} for k in n])
    lit("lit-tensor", [{"image": torch.tensor(image(k)).permute(2, 0, 1).contiguous(), "y": k % 2} for k in n])
    for level in ("chunk", "batch"):
        lit(f"lit-zstd-{level}", [{"image": image(k)} for k in n], compression="zstd", compression_level=level)
    lit("lit-nested", [{"a": {"image": image(k), "text": "ab"[k % 2]}, "b": [k, k]} for k in n])


if __name__ == "__main__":
    main()
