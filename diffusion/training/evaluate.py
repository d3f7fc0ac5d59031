"""`diffusion.evaluate`: sample quality of runs; a missing extractor is trained first."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffusion.generation.engine import Engine
from diffusion.guidance import Guidance
from diffusion.judging.evaluate import answer
from diffusion.judging.request import Request
from diffusion.judging.table import Table
from diffusion.samplers import Sampler
from diffusion.support.processes import together
from diffusion.training.extractor_of import train_extractor
from diffusion.training.run import train


def evaluate(
    runs: str | Path | Sequence[str | Path],
    n: int = 5000,
    *,
    metrics: str | Sequence[str] | None = None,
    sweep: str | Sequence[Mapping[str, Any]] | None = None,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    guidance: str | Guidance | None = None,
    scale: float | None = None,
    w: float | None = None,
    rescale: float | None = None,
    negative: str | None = None,
    interval: str | tuple[float, float] | None = None,
    guide: str | None = None,
    classifier: str | None = None,
    clip_prompt: str | None = None,
    clip: str | None = None,
    clip_scale: float | None = None,
    seed: int = 1,
    weights: Literal["ema", "raw"] = "ema",
    features: str = "auto",
    keep: bool = False,
    again: bool = False,
    batch_size: int = 500,
    device: str = "auto",
    precision: Literal["32", "bf16"] = "32",
    compile: str = "",
    engine: Engine = "torch",
    threads: int | str | None = None,
    data: Mapping[str, Any] | None = None,
    then: str | Path | Sequence[str | Path] = (),
    augment: float | Sequence[float] | None = None,
    **arguments: Any,
) -> Table:
    """Sample quality, each figure with a 95 % interval and the test images' score, as `diffusion evaluate` prints it.

    Results are cached in RUN/evaluation/ and reused. If the data set's own extractor (a classifier, or self-supervised
    features for data without classes) is required and missing, it is trained first (once, minutes).

    Args:
        runs: run directories, experiment folders (their newest run), or checkpoint files; one, or several to compare.
        n: samples per run and setting, >= 2.
        metrics: names, "frechet,kid" or a sequence; by default all but nll, swd, spectrum and background, in
            a sweep frechet and consistency; of data without classes all but nll, is, consistency and background, in a
            sweep frechet and swd.
        sweep: settings to compare, "sampler=DDIM,UniPC steps=5,10; sampler=DDPM", or a sequence of mappings.
        sampler, steps, guidance, scale, w, rescale, negative, interval, guide, classifier, clip_prompt, clip,
            clip_scale: sampling options, see `generation.choices.Choices`; the run's own by default.
        seed: sample k is a function of (seed, k) and its condition alone.
        weights: averaged or raw.
        features: "auto" (the data set's own extractor), a run or checkpoint of one, or "Inception:FILE".
        keep: save the samples beside the figures, as .npz.
        again: repeat measurements instead of reusing cached results.
        batch_size: samples per batch, >= 1; it does not change the samples.
        device, precision, compile, engine, threads: see `Pipeline.load`.
        data: arguments of the runs' data set to override, e.g. {"root": "/data"}.
        then: super-resolution models that enlarge the samples, see `judging.request.Request`.
        augment: noise on the input of each of them; a sweep of it is sweep="augment=0,0.1,0.3".
        arguments: further arguments of the sampler and the guidance, e.g. eta=0.5.
    Raises:
        FileNotFoundError: no checkpoint, no configuration beside it, or no data.
        ValueError: incompatible runs, settings or metrics.
    """
    request = Request.of(
        runs, arguments, n=n, metrics=metrics, sweep=sweep, sampler=sampler, steps=steps, guidance=guidance,
        scale=scale, w=w, rescale=rescale, negative=negative, interval=interval, guide=guide, classifier=classifier,
        clip_prompt=clip_prompt, clip=clip, clip_scale=clip_scale, seed=seed, weights=weights, features=features,
        keep=keep, again=again, batch_size=batch_size, device=device, precision=precision, compile=compile,
        engine=engine, threads=threads, data=data or {}, augment=augment,
        then=(then,) if isinstance(then, (str, Path)) else tuple(then),
    )  # fmt: skip
    with together() as processes:
        return answer(request, processes, partial(train_extractor, fit=train))
