"""Reconstructions of test images by an autoencoder, measured as samples are."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from diffusion.data import ImageData
from diffusion.data.recorded import open_data
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.frozen import Frozen
from diffusion.denoiser.codecs.pca import PCA
from diffusion.judging.judge import open_evaluator, open_extractor
from diffusion.judging.request import Request
from diffusion.judging.table import Table, footnote, lines
from diffusion.metrics.base import metric
from diffusion.support import runs
from diffusion.support.files import atomic
from diffusion.support.processes import Processes

METRICS = "frechet,kid,pr"
SEEN = 10_000  # training images that the linear codec is fitted to


def autoencoder_of(request: Request) -> Path | None:
    """The checkpoint file of the autoencoder that a request is about; None for diffusion models.

    Raises:
        ValueError: an autoencoder together with other runs, or with options of sampling.
    """
    files = [runs.find_checkpoint(run) for run in (*request.runs, *request.then)]
    found = [file for file in files if "discriminator" in runs.read_checkpoint(file)["hyper_parameters"]]
    if not found:
        return None
    if len(files) > 1 or request.sweep or request.choices != type(request.choices)():
        raise ValueError(
            f"{found[0]}: an autoencoder is evaluated alone, without a sampler or a sweep: its reconstructions of "
            "test images are measured"
        )
    return found[0]


def answer(
    file: Path,
    request: Request,
    processes: Processes = Processes(),
    train: Callable[[ImageData], None] | None = None,
) -> Table:
    """The quality of the reconstructions of test images, evenly spread, and their PSNR beside that of a linear codec.

        PSNR = 10 log10(range^2 / mean squared error),    range = 2 for images in [-1, 1]

    The linear codec is `PCA` of the same latent shape. The interval of the PSNR is that of the mean squared error over
    images. The distances compare the reconstructions with the training images, as `evaluate` does with samples; their
    floors are those of the same test images.

    Args:
        file: the autoencoder's checkpoint; for the others see `judging.evaluate.answer`.
    Raises:
        ValueError: data without bounds, whose PSNR is not defined.
    """
    data = open_data(file, **request.data)
    if not data.scaling.bounded:
        raise ValueError(f"{file}: PSNR is of images with bounds, such as 8-bit ones, not {data.scaling.dtype}")
    data.prepare_data()
    codec = Frozen(str(file), request.weights)
    linear = PCA(codec.channels, codec.latent, codec.factor)
    linear.prepare(lambda: batches(data, "train", min(SEEN, len(data.store("train")[0])), request.batch_size))
    extractor = open_extractor(data, request.features, "cpu", processes, train)
    evaluator = open_evaluator(data, extractor, processes)
    n = min(request.n, len(data.store("test")[0]))
    images, errors = reconstructed(codec, data, n, request.batch_size)
    mine, best = psnr(errors), psnr(reconstructed(linear, data, n, request.batch_size)[1])
    names = request.metrics or METRICS
    kinds = [metric(name.strip()) for name in (names.split(",") if isinstance(names, str) else names)]
    figures = evaluator.figures(evaluator.describe(images, data.store("test")[1][spread(data, "test", n)]), kinds)
    record = {
        "setting": {"checkpoint": codec.hash, "weights": request.weights, "n": n, "latent": shape_of(codec, data)},
        "psnr": mine,
        "psnr_linear": best,
        "reference": evaluator.provenance,
        "figures": [{"metric": f.name, **f._asdict()} for f in figures],
    }
    step = runs.read_checkpoint(file)["global_step"]
    path = runs.directory(file) / "evaluation" / f"step{step:08d}-{request.weights}-reconstructions-n{n}.json"
    if processes.first:
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    text = (
        f"\n{n:,} reconstructions of test images, latents {record['setting']['latent']}, {request.weights} weights\n"
        f"  PSNR {mine[0]:.2f} dB ({mine[1]:.2f} .. {mine[2]:.2f}); the best linear codec of this size: "
        f"{best[0]:.2f} dB\n"
        f"{lines(record)}{footnote(extractor.note)}"
    )
    return Table((record,), text, (path,))


def batches(data: ImageData, split: str, n: int, size: int) -> Iterator[Tensor]:
    """n images x_0 of a split, evenly spread."""
    for index in spread(data, split, n).split(size):
        yield data.scaling.encode(data.some(split, index)[0])


def spread(data: ImageData, split: str, n: int) -> Tensor:
    """The numbers of n evenly spread images of a split."""
    return torch.arange(n) * len(data.store(split)[0]) // n


@torch.no_grad()
def reconstructed(codec: Codec, data: ImageData, n: int, size: int) -> tuple[Tensor, Tensor]:
    """Raw reconstructions (n, C, H, W) of test images, and the mean squared error of each of them (n,)."""
    images, errors = [], []
    for x0 in batches(data, "test", n, size):
        raw = data.scaling.decode(codec.image(codec.code(x0)).clamp(-1, 1))
        images.append(raw)
        errors.append((data.scaling.encode(raw) - x0).double().square().flatten(1).mean(1))
    return torch.cat(images), torch.cat(errors)


def psnr(errors: Tensor) -> tuple[float, float, float]:
    """The PSNR in dB of images whose mean squared errors are given (n,), and its 95 % interval."""
    mean, half = float(errors.mean()), 1.96 * float(errors.std()) / math.sqrt(len(errors))
    return tuple(10 * math.log10(4 / max(error, 1e-12)) for error in (mean, mean + half, mean - half))


def shape_of(codec: Codec, data: ImageData) -> str:
    """The shape of the latents, h x w x channels."""
    C, h, w = codec.latent_shape(data.shape)
    return f"{h}x{w}x{C}"
