"""A separate environment for the race: other packages beside this project's torch, which are not its dependencies."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch

from diffusion.support.paths import cache_root

REPO = Path(__file__).resolve().parents[2]
COMPLETE = (  # with their dependencies
    "accelerate==1.15.0",
    "diffusers==0.42.1" if sys.version_info >= (3, 11) else "diffusers==0.41.0",
)
PACKAGES = (  # without their dependencies, of which most are not used here; those that are needed are listed
    "azula==0.11.1",
    "denoising-diffusion-pytorch==2.3.4",
    "ema-pytorch",
    "einops",
    "pot",
    "pytorch-fid",
    "scipy",
    "smalldiffusion==0.5.0",
    "torch-ema==0.3",
    "torchcfm==1.0.7",
    "torchdiffeq",
)
IMPORTS = "import accelerate, azula, denoising_diffusion_pytorch, diffusers, ot, smalldiffusion, torchcfm, torchdiffeq"
MEASURED = ("denoising-diffusion-pytorch", "diffusers", "smalldiffusion", "torchcfm", "azula")


def folder() -> Path:
    """The environment of this Python and this torch."""
    version = torch.__version__.partition("+")[0]
    return cache_root() / "race" / f"py{sys.version_info[0]}{sys.version_info[1]}-torch{version}"


def python() -> Path:
    """The environment's interpreter; the environment is made if it does not exist."""
    place = folder()
    program = place / "bin" / "python"
    if not (place / "complete").is_file():
        print(f"installing the other packages into {place}", flush=True)
        venv.create(place, clear=True, with_pip=True)
        inside = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/base.pth"
        (place / inside).write_text(sysconfig.get_path("purelib") + "\n")
        install = [program, "-m", "pip", "install", "-q"]
        subprocess.run([*install, f"torch=={importlib.metadata.version('torch')}", *COMPLETE], check=True)  # it stays
        subprocess.run([*install, "--no-deps", *PACKAGES], check=True)
        subprocess.run([program, "-c", IMPORTS], check=True)
        (place / "complete").touch()
    return program


def variables() -> dict[str, str]:
    """The variables of a process of the race: one thread, this checkout, no network."""
    return os.environ | {
        "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def versions() -> dict[str, str]:
    """The installed versions of the packages that race, in the present process."""
    return {name: importlib.metadata.version(name) for name in MEASURED}
