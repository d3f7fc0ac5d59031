"""Small checkpoints: one set of weights in half precision, without the optimizer. They load like any other."""

from pathlib import Path
from typing import Literal

import torch
import yaml

from diffusion import __version__
from diffusion.denoiser.saved import load_denoiser
from diffusion.support import runs
from diffusion.support.files import atomic
from diffusion.support.seal import seal

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def compact(
    run: str | Path,
    out: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
) -> Path:
    """Write a run's model as a small checkpoint, with its model and data in a config.yaml beside it.

    The weights are stored in `dtype` and become float32 on loading.

    Args:
        run: run directory or checkpoint file.
        out: the .ckpt file.
        weights: averaged or raw.
    Raises:
        ValueError: a weight is beyond the largest number of the type.
    """
    saved, out = load_denoiser(run, weights), Path(out)
    state = {f"denoiser.{k}": v.to(DTYPES[dtype]).contiguous() for k, v in saved.denoiser.state_dict().items()}
    codec = {k: v for k, v in saved.checkpoint["state_dict"].items() if k.startswith("codec.")}  # has a hash: as it is
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise ValueError(f"{run}: {bad[0]} does not fit {dtype}; use bf16 or fp32")
    contents = {
        "state_dict": state | codec,
        "hyper_parameters": saved.hyper_parameters,
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": saved.checkpoint.get("pytorch-lightning_version", "2.6.0"),
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "compact": {
            "weights": weights, "dtype": dtype, "steps": saved.checkpoint["global_step"], "version": __version__,
        },
    }  # fmt: skip
    with atomic(out) as temporary:
        torch.save(contents, temporary)
        seal(temporary)
    config = runs.directory(saved.path) / "config.yaml"
    if config.is_file():
        known = yaml.safe_load(config.read_text())
        kept = {k: known[k] for k in ("seed_everything", "model", "data") if k in known}
        with atomic(out.with_name("config.yaml")) as temporary:
            temporary.write_text(yaml.safe_dump(kept, sort_keys=False))
    return out
