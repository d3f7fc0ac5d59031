"""`diffusion doctor`: the environment of this machine, and what is missing."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffusion import __version__
from diffusion.support.paths import INSTALLED, data_root, home, kept, run_root

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "jsonargparse", "tensorboard", "numpy", "pillow", "imageio",
)  # fmt: skip
FILES = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte*",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte*",
    "CIFAR10": "cifar-10-batches-py/data_batch_1",
    "CIFAR100": "cifar-100-python/train",
    "CIFAR10 as JPEG": "cifar10-jpeg*/*",
    "Sprites": "**/sprites_*16x16.npy",
}


def main(argv: list[str]) -> int:
    if argv:
        if argv[0] in ("-h", "--help"):
            print("usage: diffusion doctor\n\nPrints versions, device, driver, data, disk and a write test.")
            return 0
        raise ValueError(f"doctor takes no arguments, got {argv[0]!r}")
    sound = True
    say("diffusion", f"{__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    for name in PACKAGES:
        try:
            say(name, version(name))
        except PackageNotFoundError:
            sound = False
            say(name, "MISSING: " + (f"pip install {name}" if INSTALLED else "run ./setup.sh"))
    from diffusion.nets.speed import has_amx

    say("processor", f"{os.cpu_count()} cores, {'AMX: trains in bf16' if has_amx() else 'no AMX: trains in float32'}")
    say("GPU", gpu())
    if home():
        say("SageMaker", home())
    root = data_root()
    found = [name for name, pattern in FILES.items() if root.is_dir() and any(root.glob(pattern))]
    say("data", f"{root}: {', '.join(found) or 'nothing yet'}; Digits and built-in Sprites need no files")
    for name, folder in (("runs", run_root()), ("temporary", Path(tempfile.gettempdir()))):
        written = writes(folder)
        sound &= not written
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free / 2**30
        lost = "" if name == "temporary" or kept(folder) else "; LOST WHEN THE INSTANCE STOPS: clone into ~/SageMaker"
        sound &= not lost
        say(name, f"{folder}: {free:,.1f} GiB free, {written or 'writing works'}{lost}")
    print("everything is in order" if sound else "something is missing, see above")
    return 0 if sound else 1


def say(name: str, text: str) -> None:
    print(f"{name:18} {text}")


def gpu() -> str:
    """Names, memory and driver of the usable GPUs, or the reason why there are none."""
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "not found"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in found)
        return f"{names}, driver {driver}, torch built for CUDA {torch.version.cuda}"
    if driver == "not found":
        return "none, no NVIDIA driver; training runs on the CPU"
    return f"driver {driver}, but torch {torch.__version__} cannot use it: update the driver or the torch"


def writes(folder: Path) -> str:
    """Empty if a file can be written, synced and removed there, else the reason. A missing folder stays missing."""
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        for above in made:
            above.rmdir()
    except OSError as error:
        return f"CANNOT BE WRITTEN ({error.strerror})"
    return ""
