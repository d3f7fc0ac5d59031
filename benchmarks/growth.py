"""Time and memory per image as batch size, image size, data set and number of samples grow.

    python -m benchmarks.growth [--rounds 3] [--sizes 9] [--plot docs/images/growth.png]

A U-Net of 1.2 million parameters on one device. Memory: on a GPU torch's peak allocation, otherwise the process's
peak resident memory, less the initial value.
"""

import argparse
import ctypes
from pathlib import Path

import torch

from benchmarks.common import machine, memory, save, seconds, wait
from diffusion import Diffusion, pictures
from diffusion.data.batches import Batches
from diffusion.nets import UNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.training.pace import loss_of

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (8, 16, 32, 64)
IMAGES = (1_000, 10_000, 100_000, 1_000_000)
SAMPLES = (32, 128, 512, 2048)


def model(size: int, device: torch.device) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(UNet(1, 32, (1, 2, 2), 1, (2,), 32), Cosine(), sampler=DDIM(2), shape=(1, size, size)).to(device)


def reset() -> None:
    """Reset the peak memory, and release cached memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def used(work, rounds: int) -> tuple[float, int]:
    """The shortest time of some rounds in seconds, and the peak memory in bytes beyond the initial value."""
    work()
    wait()
    reset()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else memory()[0]
    spent = min(seconds(work) for _ in range(rounds))
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory()[1]
    return spent, most - before


def step(diffusion: Diffusion, batch: int) -> None:
    loss_of(diffusion, batch).backward()
    diffusion.zero_grad(set_to_none=True)


def epoch(n: int, device: torch.device) -> Batches:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return Batches(
        images, torch.zeros(n, dtype=torch.long), 100, shuffle=True, drop_last=True, flip=True, device=device
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=len(BATCHES), help="of each kind, from the smallest (default all)")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/growth.png"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    rows: dict[str, list[dict]] = {"batch": [], "size": [], "data": [], "samples": []}

    def keep(kind: str, n: int, images: int, work) -> None:
        spent, most = used(work, args.rounds)
        rows[kind].append({"n": n, "ms_an_image": 1e3 * spent / images, "mib": most / 2**20})
        print(f"{kind:8} {n:>9,}: {1e3 * spent / images:9.4f} ms per image, {most / 2**20:8.1f} MiB", flush=True)

    trained = model(16, device)
    for batch in BATCHES[: args.sizes]:
        keep("batch", batch, batch, lambda b=batch: step(trained, b))
    for size in SIZES[: args.sizes]:
        trained = model(size, device)
        keep("size", size, 32, lambda m=trained: step(m, 32))
    for n in IMAGES[: args.sizes]:
        loader = epoch(n, device)
        keep("data", n, n, lambda b=loader: [None for _ in b])
    small = model(8, device).eval().pipeline
    for n in SAMPLES[: args.sizes]:
        keep("samples", n, n, lambda k=n: [None for _ in small.batches(k, batch_size=32)])
    print(f"written: {save('growth', {'rows': rows})}, {draw(rows, args.plot)}")


def draw(rows: dict[str, list[dict]], path: Path) -> Path:
    """Time and memory against each growing size, one panel each."""
    titles = {
        "batch": "training: batch size", "size": "training: image size, pixels",
        "data": "loading: images in the set", "samples": "sampling: images made",
    }  # fmt: skip
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = pictures.blank(14, 3.4)
    for axes, (kind, title) in zip(figure.subplots(1, 4), titles.items(), strict=True):
        n, time, space = ([row[k] for row in rows[kind]] for k in ("n", "ms_an_image", "mib"))
        axes.plot(n, time, "o-", color="tab:blue", label="ms per image")
        axes.set(xscale="log", xlabel=title)
        axes.set_xticks(n if kind == "size" else n[:: max(1, len(n) // 4)], minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, max(time) * 1.15)
        axes.tick_params(axis="y", which="both", colors="tab:blue")
        other = axes.twinx()
        other.plot(n, [max(0, v) for v in space], "s--", color="tab:orange")
        other.set_ylim(0, max(1.0, *space) * 1.2)
        other.tick_params(axis="y", colors="tab:orange")
        axes.grid(alpha=0.25)
    figure.supylabel("ms per image", color="tab:blue", fontsize=10)
    figure.text(1.005, 0.5, "peak memory, MiB", color="tab:orange", rotation=270, va="center", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


if __name__ == "__main__":
    main()
