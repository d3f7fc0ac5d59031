"""Pipeline: a trained denoiser with everything that sampling requires, independent of training."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, load_denoiser
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.codecs.saved import load_codec
from diffusion.denoiser.hints import Hint
from diffusion.generation.conditioning import Conditioning, repeated
from diffusion.generation.engine import ENGINES, ROWS, Engine, fastest, in_onnx, threads_of
from diffusion.generation.latents import Pixels
from diffusion.guidance import Bound, Clamp, Guidance, Plain
from diffusion.nets.fastest import Measured
from diffusion.nets.onnx_net import OnnxNet
from diffusion.nets.speed import compiled
from diffusion.noise.draws import ImageDraws
from diffusion.pictures.bands import visible
from diffusion.samplers import DDIM, Frame, Sampler
from diffusion.support import console
from diffusion.support.crowd import CoreWaits, Crowded
from diffusion.support.scaling import Scaling
from diffusion.support.specs import part

PARTS = {"sampler": Sampler, "guidance": Guidance, "clamp": Bound, "hint": Hint | None}  # beside the denoiser


@dataclass(eq=False, repr=False)
class Pipeline(Conditioning):
    """A denoiser with its sampling configuration and image format; `dataclasses.replace` gives a modified copy.

    Args:
        denoiser: network, schedule and target.
        sampler: performs the steps from noise to image.
        guidance: how a condition steers sampling.
        clamp: limit on the predicted x_0; `guidance.bounds.Unbounded()` for data without bounds.
        hint: maps an image to the network's additional input; None for a model without one.
        shape: (C, H, W) of an image.
        class_names: names of the classes or context features, if they have any.
        seed: default seed of the hints.
        scaling: between x_0 and the raw values of the data.
        bands: channels that pictures show, from 1; () is the usual choice, see `pictures.visible`.
        codec: from images to what the denoiser works on; shape, hints and all results are of images.
        engine: the way in which the network is evaluated, one of `nets.fastest.WAYS`.
    """

    denoiser: Denoiser
    sampler: Sampler = field(default_factory=DDIM)
    guidance: Guidance = field(default_factory=Plain)
    clamp: Bound = field(default_factory=Clamp)
    hint: Hint | None = None
    shape: tuple[int, int, int] = (1, 32, 32)
    class_names: tuple[str, ...] = ()
    seed: int = 0
    scaling: Scaling = Scaling()
    bands: tuple[int, ...] = ()
    codec: Codec = field(default_factory=Identity)
    engine: str = "torch"

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        parts = [type(p).__name__ for p in (self.denoiser.net, self.denoiser.schedule, self.denoiser.target)]
        return f"Pipeline({', '.join(parts)}, {type(self.sampler).__name__}, {type(self.guidance).__name__}, {shape})"

    @classmethod
    def load(
        cls,
        run: str | Path,
        weights: Literal["ema", "raw"] = "ema",
        device: torch.device | str = "cpu",
        precision: Literal["32", "bf16"] = "32",
        compile: str = "",
        engine: Engine = "torch",
        threads: int | str | None = None,
        rows: int = ROWS,
    ) -> "Pipeline":
        """The model of a run directory, an experiment folder (its newest run), a checkpoint or an exported file.

        Args:
            weights: the exponential moving average (if the run kept one), or the raw weights of the last step.
            device: of the network; "auto" is a GPU if there is one.
            precision: of the network's matrix products.
            compile: mode of `torch.compile`; "" does not compile.
            engine: "onnx" evaluates the network with ONNX Runtime, on the CPU; an .onnx file always does. "fastest"
                measures the ways of evaluating it here, once, and tells the choice and the difference that it makes.
            threads: of torch in this process from now on: a number, or "fastest", measured; None leaves it as it is.
            rows: images per evaluation, for what is measured.
        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: not a valid checkpoint of a diffusion model of this project, or options that exclude each other.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine: wanted {', '.join(ENGINES)}; got {engine!r}")
        saved = load_denoiser(run, weights, "cpu" if engine == "onnx" and device == "auto" else device)
        denoiser, given = saved.denoiser, saved.hyper_parameters
        shape = tuple(given["shape"])
        codec = load_codec(saved, next((p.device for p in denoiser.parameters()), "cpu"))
        inner, free = codec.latent_shape(shape), precision == "32" and not compile
        if said := threads_of(denoiser, inner, threads, rows):
            warnings.warn(said, Measured, stacklevel=2)
        if engine == "fastest":
            denoiser, engine = fastest(denoiser, inner, rows, free)
        else:
            if engine == "onnx" or isinstance(denoiser.net, OnnxNet):
                denoiser = in_onnx(denoiser, inner, free and str(device) in ("auto", "cpu"))
            denoiser.precision = torch.bfloat16 if precision == "bf16" else None
            if compile:
                compiled(denoiser.net, compile)
        parts = [part(given, name, kind) for name, kind in PARTS.items()]
        names, seed = given.get("class_names", ()), given.get("seed", 0)
        scaling = Scaling.of(given.get("scaling"))
        return cls(denoiser, *parts, shape, tuple(names), seed, scaling, codec=codec, engine=engine)

    @property
    def first(self) -> "Pipeline":
        """The stage that receives the conditions: this model, or the base of a cascade."""
        return self

    @property
    def last(self) -> "Pipeline":
        """The stage whose images are the result: this model, or the last of a cascade without those before it."""
        return self

    @property
    def stages(self) -> list["Pipeline"]:
        """The models whose walks follow each other: this one, or those of a cascade."""
        return [self]

    def stream(self, seed: int) -> int:
        """The seed of this stage's own noise."""
        return seed

    @property
    def walk(self) -> str:
        """The sampler in words."""
        return f"{type(self.sampler).__name__} {self.sampler.steps} steps"

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of what the denoiser works on; (C, H, W) of an image without a codec."""
        return self.codec.latent_shape(self.shape)

    @property
    def pixels(self) -> Pixels:
        """The codec, without gradients and with images in the range of the data."""
        return Pixels(self.codec, self.scaling.bounded)

    def picture(self, x0: Tensor) -> np.ndarray:
        """Images x0 (N, C, H, W) as pictures uint8 (N, H, W, 1, 3 or 4) of the chosen bands."""
        return visible(x0, self.bands, self.scaling.dtype)

    def in_units(self, x0: Tensor) -> Tensor:
        """Images x0 as Python callers receive them: of 8-bit data in [-1, 1], of others raw, in the data's units."""
        return x0 if self.scaling.dtype == "uint8" else self.scaling.decode(x0)

    # --- sampling ---------------------------------------------------------------------------------------

    def start(self, n: int, seed: int = 0) -> Tensor:
        """The initial noise (n, C, H, W) of images 0 .. n - 1 of a seed; that of latents as the codec decodes it."""
        noise = ImageDraws(seed, range(n))(torch.empty(n, *self.latent_shape, device=self.device))
        return self.denoiser.schedule.prior_std * self.pixels.decode(noise)

    def steered(
        self, y: Tensor | None, image: Tensor | None = None, guidance: Guidance | None = None, walk: bool = True
    ) -> Denoise:
        """The prediction that a sampler follows in one walk, before any limit on x_0.

        Args:
            y, image: the condition, see `frames`.
            guidance: the pipeline's by default.
            walk: with the memory of one walk if the network is self-conditioned; False is a function of (x, t).
        Raises:
            ValueError: the guidance is for another schedule, shape or other classes.
        """
        guidance = guidance or self.guidance
        y, image = (v if v is None else v.to(self.device) for v in (y, image))
        cond = Condition(y, image=image) if guidance.num_classes else self.condition(y, image)
        if reason := guidance.refuse(self.denoiser.schedule, self.shape, self.class_names, self.codec):
            raise ValueError(f"{type(guidance).__name__}: {reason}")
        guidance = guidance.decoded(self.codec) if self.codec.latent else guidance
        remembers = walk and self.denoiser.self_condition
        return guidance(self.denoiser.walk() if remembers else self.denoiser, cond)

    @torch.no_grad()
    def frames(
        self,
        n: int,
        y: Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        first: int = 0,
        image: Tensor | None = None,
        same: bool = False,
    ) -> Iterator[Frame]:
        """Walk n images from noise to clean, yielding a frame after each step.

        Args:
            y: labels (n,), contexts (n, D), or text: tokens (n, L), or what `prompts` returns. By default all classes
                in turn; none if an image is given.
            seed: image k is a function of (seed, k) and its condition alone.
            sampler, guidance: the pipeline's by default.
            first: the number k of the first image.
            same: every image has the noise of image 0.
            image: (n, K, h, w), the additional input of a network with image_channels; see `hint.read`, `shown`.
        """
        y = self.in_turn(n) if y is None and image is None else y
        denoise = self.clamp(self.steered(y, image, guidance))
        noise = ImageDraws(seed, [0] * n if same else range(first, first + n))
        x = self.denoiser.schedule.prior_std * noise(torch.empty(n, *self.latent_shape, device=self.device))
        training = [module for module in self.denoiser.modules() if module.training]
        if training:
            self.denoiser.eval()
        waits = CoreWaits(torch.get_num_threads() if x.device.type == "cpu" else 1)
        try:
            walk = (sampler or self.sampler).iterate(denoise, x, self.denoiser.schedule, noise)
            for frame in self.pixels.frames(walk):
                yield frame
                if said := waits.look():
                    warnings.warn(said, Crowded, stacklevel=2)
        finally:
            for module in training:
                module.training = True

    def walks(self, *given, **options) -> Iterator[Frame]:
        """The frames of the walks of all stages, those of the last stage last; the arguments are those of `frames`."""
        return self.frames(*given, **options)

    def sample(
        self, n: int = 16, y: Tensor | None = None, seed: int = 0, prompt: str | Sequence[str] = (), **options: Any
    ) -> Tensor:
        """n images x_0 (n, C, H, W) on the CPU, in [-1, 1] for 8-bit data; the options are those of `batches`.

        Args:
            prompt: one text or several, in turn, instead of y.
        """
        if len(prompt):
            y = repeated(self.prompts(prompt), n)
        return torch.cat(list(self.batches(n, y, seed, **options)))

    def batches(
        self,
        n: int = 16,
        y: Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        batch_size: int = 256,
        progress: bool = False,
        first: int = 0,
        image: Tensor | None = None,
        same: bool = False,
    ) -> Iterator[Tensor]:
        """n images x_0 on the CPU, in batches (B, C, H, W); see `frames` for the arguments.

        Args:
            batch_size: images per batch; it does not change the images.
            progress: show a progress bar with rate and remaining time.
        Raises:
            ValueError: n < 1 or batch_size < 1.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"sample: n and batch_size must be at least 1, got {n} and {batch_size}")
        y = self.in_turn(n) if y is None and image is None else y
        walks = *(stage.sampler for stage in self.stages[:-1]), sampler or self.sampler
        steps = sum(walk.steps for walk in walks) * math.ceil(n / batch_size)
        with console.progress(steps, unit="step", shown=progress) as bar:
            for at in range(0, n, batch_size):
                part = slice(at, min(at + batch_size, n))
                mine, its = (v if v is None else v[part] for v in (y, image))
                for frame in self.walks(part.stop - at, mine, seed, sampler, guidance, first + at, its, same):
                    last = frame  # of latents: only this one is decoded
                    bar.update()
                yield last.x.cpu()
