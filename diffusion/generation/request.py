"""The request for pictures as a frozen value: number, conditions, sampling and computation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.generation.conditions import Asked
from diffusion.generation.engine import ROWS, Engine
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import Opened
from diffusion.pictures.bands import bands_of


@dataclass(frozen=True)
class Request:
    """A request for pictures of a run.

    Attributes:
        run: run directory, experiment folder (its newest run), checkpoint or exported file, or an open pipeline.
        n: pictures; None derives the number from the conditions.
        asked: the conditions.
        choices: the sampler and the guidance.
        seed: picture k is a function of (seed, k) and its condition alone.
        weights: averaged or raw.
        batch_size: pictures per batch; it does not change them.
        device, precision, compile, engine, threads: see `Pipeline.load`.
        data: overrides of the data set's arguments, for the image "test".
        then: super-resolution models that enlarge its pictures one after the other: runs or open pipelines.
        bands: one or three channels that pictures show, from 1: "3,2,1" or a sequence; see `pictures.visible`.
    """

    run: str | Path | Pipeline
    n: int | None = None
    asked: Asked = Asked()
    choices: Choices = Choices()
    seed: int = 0
    weights: Literal["ema", "raw"] = "ema"
    batch_size: int = 256
    device: str = "auto"
    precision: Literal["32", "bf16"] = "32"
    compile: str = ""
    engine: Engine = "torch"
    threads: int | str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    then: Sequence[str | Path | Pipeline] = ()
    bands: str | Sequence[int] = ()

    @classmethod
    def of(cls, run: str | Path | Pipeline, arguments: Mapping[str, Any] | None = None, **words: Any) -> "Request":
        """A request from flat keywords: the fields of all its parts.

        Args:
            arguments: further arguments of the sampler and the guidance.
        """
        asked = {f.name: words.pop(f.name) for f in fields(Asked) if f.name in words}
        how = {f.name: words.pop(f.name) for f in fields(Choices) if f.name in words}
        return cls(run, asked=Asked(**asked), choices=Choices(**how, arguments=dict(arguments or {})), **words)

    def load(self) -> Pipeline:
        """The model as requested, with the run's own sampler and guidance."""
        found = Cascade.of(*map(self._load, [self.run, *self.then]))
        return replace(found, bands=bands_of(self.bands, found.shape[0])) if self.bands else found

    def _load(self, run: str | Path | Pipeline) -> Pipeline:
        if isinstance(run, Pipeline):
            return run
        rows = min(self.n or ROWS, self.batch_size)
        how = self.weights, self.device, self.precision, self.compile, self.engine, self.threads
        return Pipeline.load(run, *how, rows)

    def open(self, default: int) -> Opened:
        """The model with the chosen sampler and guidance, and the pictures requested.

        Args:
            default: number of pictures if the request gives none.
        Raises:
            ValueError: a number below 1, or choices and conditions that the model does not support.
        """
        if self.n is not None and self.n < 1 or self.batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, got {self.n} and {self.batch_size}")
        pipeline = self.choices.apply(self.load())
        first = pipeline.first
        data = self.open_data() if self.asked.image == "test" and first.hint else None
        n, given, columns = self.asked.resolve(first, self.n, default, self.seed, data)
        if first is not pipeline:  # a truth of the base's size
            given = given._replace(truth=None)
        return Opened(pipeline, n, given, columns)

    def open_data(self) -> Any:
        """The data set that the run was trained on.

        Raises:
            FileNotFoundError: the run's configuration, or the data, are missing.
        """
        from diffusion.data.recorded import open_data  # needs Lightning

        return open_data(self.run, **self.data)


NAMES = {f.name for part in (Asked, Choices, Request) for f in fields(part)} - {"asked", "choices", "arguments", "run"}
