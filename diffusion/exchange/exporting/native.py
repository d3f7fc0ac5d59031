"""model.safetensors with model.json: weights and plain specs, which `Pipeline.load` opens like a run."""

from pathlib import Path
from typing import Literal

import torch

from diffusion.exchange.exporting.facts import Source, digest, floats, text_of
from diffusion.support.extras import extra
from diffusion.support.files import atomic
from diffusion.support.released import CODEC, beside

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_native(source: Source, to: Path, precision: Literal["32", "bf16", "fp16"] = "32") -> list[Path]:
    """Write the weights and their description; the same bytes at every call.

    The description has the checksum of the weights, so that a pair of which only one file was replaced is refused.

    Args:
        to: the .safetensors file; the .json is beside it.
        precision: of the stored weights; those of a codec are stored as they are.
    """
    state, codec = source.pipeline.denoiser.state_dict(), source.pipeline.codec.state_dict()
    tensors = {name: floats(value, DTYPES[precision]) for name, value in sorted(state.items())}
    tensors |= {f"{CODEC}{name}": floats(value, value.dtype) for name, value in sorted(codec.items())}  # it has a hash
    tensors = {name: value.clone() for name, value in tensors.items()}  # no two share memory, which is refused
    data = extra("safetensors.torch", "export").save(tensors, {"format": "pt"})
    text = text_of(source.describe(sha256=digest(data), precision=precision), indent=1) + "\n"
    with atomic(to) as weights, atomic(beside(to)) as description:
        weights.write_bytes(data)
        description.write_text(text, encoding="utf-8")
    return [to, beside(to)]
