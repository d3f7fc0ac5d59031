"""Likelihood of a split's images: by the variational bound and by the probability flow, in bits per dimension."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion.data.base import Split
from diffusion.data.recorded import open_data
from diffusion.denoiser import Condition
from diffusion.generation.pipeline import Pipeline
from diffusion.likelihood import vlb
from diffusion.likelihood.flow import bits_per_dim, dequantise, log_likelihood
from diffusion.nets.threads import threads_restored
from diffusion.noise.draws import ImageDraws
from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import atomic

Method = Literal["both", "vlb", "ode"]
Data = tuple[Tensor, Tensor, Tensor | None]  # images, their labels or contexts, their scaled paired images


@dataclass(frozen=True)
class Request:
    """The likelihood of a split's images under a run's model; the attributes are the arguments of `nll`."""

    run: str | Path
    method: Method = "both"
    split: Split = "test"
    n: int | None = None
    steps: int | None = None
    variance: vlb.Variance | None = None
    exact: bool = False
    tolerance: float = 1e-3
    unconditional: bool = False
    seed: int = 0
    weights: Literal["ema", "raw"] = "ema"
    batch_size: int = 256
    device: str = "auto"
    data: Mapping[str, Any] = field(default_factory=dict)
    threads: int | str | None = None

    def __post_init__(self) -> None:
        if min(v for v in (self.batch_size, self.n, self.steps) if v is not None) < 1 or self.tolerance <= 0:
            raise ValueError(
                "n, steps and batch_size must be at least 1, and tolerance positive; "
                f"got {self.n}, {self.steps}, {self.batch_size} and {self.tolerance}"
            )


class BitsPerDim(NamedTuple):
    """Bits per dimension of N images.

    Attributes:
        vlb: terms L_0 .. L_T of the variational bound, (T + 1, N) float64; None if not measured.
        ode: by the probability flow, (N,) float64; None if not measured.
        steps: T.
        dims: dimensions of an image, or of its latent.
        seconds: elapsed time.
        codec: the codec of a model of latents, whose density the bits are of: -log2 p(z) / dims; "" in pixels.
    """

    vlb: Tensor | None
    ode: Tensor | None
    steps: int
    dims: int
    seconds: float
    codec: str = ""

    @property
    def totals(self) -> dict[str, Tensor]:
        """The bits of each image (N,), by method."""
        found = {"vlb": None if self.vlb is None else self.vlb.sum(0), "ode": self.ode}
        return {method: bits for method, bits in found.items() if bits is not None}


@dataclass(frozen=True)
class Report:
    """Bits per dimension and everything they depend on; `print(report)` shows means, errors and the bound's terms."""

    request: Request
    path: Path  # of the checkpoint
    conditional: bool  # the model was conditioned on the labels
    device: torch.device
    bits: BitsPerDim

    @property
    def figures(self) -> list[dict[str, Any]]:
        """Mean and standard error of each method."""
        return [
            {"method": method, "value": float(bits.mean()), "error": standard_error(bits), "n": len(bits)}
            for method, bits in self.bits.totals.items()
        ]

    def __str__(self) -> str:
        asked, bits = self.request, self.bits
        n = self.figures[0]["n"]
        given = "conditioned on the labels, " if self.conditional else ""
        flow = f"probability flow, {'exact' if asked.exact else 'Hutchinson'} divergence"
        how = {
            "vlb": f"variational bound, {bits.steps:,} steps, variance {asked.variance}",
            "ode": f"{flow}, density of latents" if bits.codec else f"{flow}, uniform dequantisation",
        }
        lines = [
            f"{shown(self.path)}: {n:,} images of the {asked.split} split, {bits.dims:,} dimensions, {given}"
            f"{asked.weights} weights, seed {asked.seed}, {bits.seconds:.0f} s on {self.device}"
        ]
        for f in self.figures:
            lines.append(f"  {f['method']}  {f['value']:.4f} +- {f['error']:.4f} bits/dim  ({how[f['method']]})")
        if bits.codec:
            lines.append(f"  of latents, {bits.codec}: compare only models of this codec, not with models of pixels")
        return "\n".join(lines if bits.vlb is None else [*lines, terms_table(bits.vlb.mean(1))])

    __repr__ = __str__

    def save(self, file: Path) -> None:
        """Write the request and every term of every image as JSON."""
        asked = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.request).items()}
        found = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in self.bits._asdict().items() if v is not None}
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(asked | {"out": str(file)} | found))


def nll(
    run: str | Path,
    *,
    method: Method = "both",
    split: Split = "test",
    n: int | None = None,
    steps: int | None = None,
    variance: vlb.Variance | None = None,
    exact: bool = False,
    tolerance: float = 1e-3,
    unconditional: bool = False,
    seed: int = 0,
    weights: Literal["ema", "raw"] = "ema",
    batch_size: int = 256,
    device: str = "auto",
    data: Mapping[str, Any] | None = None,
    threads: int | str | None = None,
) -> Report:
    """Negative log-likelihood of a split of a run's data in bits per dimension: what `diffusion nll` prints.

    A model of latents has the density of latents, by the probability flow alone.

    Args:
        run: run directory, experiment folder (its newest run), or checkpoint file.
        method: variational bound ("vlb"), probability flow ("ode"), or both.
        split: of the run's data.
        n: number of images from the start, >= 1; None takes all.
        steps: T of the bound's chain, >= 1; the schedule's T, or 1000, by default.
        variance: of the chain's steps; by default learned if the network has one, else large.
        exact: compute the flow's divergence exactly, at D times the cost of a random probe.
        tolerance: of the flow's solver, > 0.
        unconditional: do not condition on the labels.
        seed: of noise, probes and dequantisation.
        weights: averaged or raw.
        batch_size: images per batch, >= 1.
        device: "auto" is a GPU if there is one.
        data: overrides of the data set's arguments, e.g. {"root": "/data"}.
        threads: of torch, a number or "fastest"; see `Pipeline.load`.
    Raises:
        FileNotFoundError: no checkpoint, no configuration beside it, or no data.
        ValueError: a number out of range, a learned variance of a network without one, or an unknown argument.
    """
    return answer(Request(
        run, method, split, n, steps, variance, exact, tolerance, unconditional, seed, weights, batch_size, device,
        data or {}, threads,
    ))  # fmt: skip


@threads_restored()
def answer(request: Request) -> Report:
    """Open a run and measure the requested likelihood; see `nll`."""
    path = runs.find_checkpoint(request.run)
    rows = min(request.n or request.batch_size, request.batch_size)
    pipeline = Pipeline.load(path, request.weights, request.device, threads=request.threads, rows=rows)
    pipeline.denoiser.requires_grad_(False)
    data = open_data(path, **request.data)
    index = torch.arange(len(data.store(request.split)[0]))[: request.n]
    (images, y), pair = data.some(request.split, index), pipeline.pair(data, request.split, index)
    request = with_variance(request, pipeline)
    conditional = pipeline.conditional and not request.unconditional
    return Report(request, path, conditional, pipeline.device, measure(request, pipeline, images, y, pair))


def with_variance(request: Request, pipeline: Pipeline) -> Request:
    """The request with a variance: its own, else learned if the network has one, else large."""
    learned = getattr(pipeline.denoiser.net, "learn_variance", False)
    return replace(request, variance=request.variance or ("learned" if learned else "large"))


def measure(request: Request, pipeline: Pipeline, images: Tensor, y: Tensor, pair: Tensor | None = None) -> BitsPerDim:
    """The bits of uint8 images (N, C, H, W) with labels (N,) or contexts (N, D), and scaled paired images.

    Raises:
        ValueError: the model is of images of another type, whose values have no bits of this kind.
    """
    if pipeline.scaling.dtype != "uint8":
        raise ValueError(
            f"nll: bits per dimension are of 8-bit images; those of this model are {pipeline.scaling.dtype}"
        )
    latents = bool(pipeline.codec.latent)
    if latents and request.method == "vlb":
        raise ValueError(
            f"nll: this model is of latents, {pipeline.codec.name}, and the bound is of 8-bit pixels; use method ode"
        )
    request = with_variance(request, pipeline)
    request = replace(request, method="ode") if latents else request
    steps = request.steps or pipeline.denoiser.schedule.T or 1000
    data = (images, y, pair)
    batches = math.ceil(len(images) / request.batch_size)
    started = time.perf_counter()
    work = batches * {"vlb": steps, "ode": 1, "both": steps + 1}[request.method]
    every = 0.2 if sys.stderr.isatty() else 15  # seconds between two updates
    bound = flow = None
    with tqdm(total=work, desc="nll", mininterval=every) as bar:
        if request.method != "ode":
            bound = torch.cat(list(bounds(request, pipeline, data, steps, bar)), dim=1)
        if request.method != "vlb":
            flow = torch.cat(list(flows(request, pipeline, data, bar)))
    dims = math.prod(pipeline.latent_shape)
    return BitsPerDim(bound, flow, steps, dims, time.perf_counter() - started, pipeline.codec.name if latents else "")


class Batch(NamedTuple):
    """Images x0 (B, C, H, W), or latents, on the model's device, their condition, and noise by image number."""

    x0: Tensor
    cond: Condition
    noise: ImageDraws


def batches_of(request: Request, pipeline: Pipeline, images: Tensor, y: Tensor, pair: Tensor | None) -> Iterator[Batch]:
    """The images, batch by batch; `pair` are their scaled paired images."""
    for first in range(0, len(images), request.batch_size):
        mine = slice(first, first + request.batch_size)
        x0 = pipeline.scaling.encode(images[mine].to(pipeline.device))
        numbers = range(first, first + len(x0))
        labels = None if request.unconditional else y[mine].to(pipeline.device)
        its = None if pair is None else pair[mine].to(pipeline.device)
        cond = pipeline.condition(labels, pipeline.shown(x0, numbers, pair=its))
        yield Batch(pipeline.pixels.encode(x0), cond, ImageDraws(request.seed, numbers))


def bounds(request: Request, pipeline: Pipeline, data: Data, steps: int, bar: tqdm) -> Iterator[Tensor]:
    """The terms L_0 .. L_T (T + 1, B) of each batch. Clamping x_0 is valid: any reverse chain gives a bound."""
    schedule = pipeline.denoiser.schedule
    for x0, cond, noise in batches_of(request, pipeline, *data):
        denoise = pipeline.clamp(pipeline.denoiser.bind(cond))
        rows = []
        for row in vlb.terms(denoise, x0, schedule, steps, request.variance, noise=noise):
            rows.append(row.double().cpu())
            bar.update(len(rows) <= steps)  # the prior's term takes no time
        yield torch.stack(rows)


def flows(request: Request, pipeline: Pipeline, data: Data, bar: tqdm) -> Iterator[Tensor]:
    """The bits (B,) of each batch by the probability flow, with uniformly dequantised pixels, or of latents."""
    latents = bool(pipeline.codec.latent)
    for x0, cond, noise in batches_of(request, pipeline, *data):
        density = log_likelihood(
            pipeline.denoiser.bind(cond), x0 if latents else dequantise(x0, noise), pipeline.denoiser.schedule,
            "exact" if request.exact else "hutchinson", request.tolerance, request.tolerance, noise,
        ).double().cpu()  # fmt: skip
        D = x0[0].numel()
        yield -density / (D * math.log(2)) if latents else bits_per_dim(density, D)
        bar.update()


def standard_error(bits: Tensor) -> float:
    """The standard error of the mean of bits (N,); nan for one image."""
    return float(bits.std()) / len(bits) ** 0.5 if len(bits) > 1 else math.nan


def terms_table(terms: Tensor) -> str:
    """L_0, tenths of the chain, and L_T of terms (T + 1,), as lines of text."""
    T = len(terms) - 1
    edges = sorted({1 + (T - 1) * k // 10 for k in range(11)})
    lines = [("L_0", float(terms[0]))]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        lines.append((f"L_{a}" if b == a + 1 else f"L_{a} .. L_{b - 1}", float(terms[a:b].sum())))
    lines.append((f"L_{T} (prior)", float(terms[-1])))
    return "\n".join(f"    {name:20}{bits:10.5f}" for name, bits in lines)
