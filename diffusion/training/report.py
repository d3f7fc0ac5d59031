"""Console output of a run: a summary at the start; the files written and the next commands at the end."""

import json
import shlex
from contextlib import suppress
from pathlib import Path

import pytorch_lightning as pl

from diffusion.data import ImageData
from diffusion.data.prepared import Prepared
from diffusion.support import runs
from diffusion.support.console import board, clock, shown, tool
from diffusion.support.specs import arguments, spec
from diffusion.training.callbacks import Budget, PostHoc, Rate, Watch
from diffusion.training.systems import Autoencoder, Diffusion, NoisyClassifier

NAMED = 5  # classes or words that are named at the start


def begins(model: pl.LightningModule, trainer: pl.Trainer, data: pl.LightningDataModule, run: Path, why: str) -> str:
    """The network, data and conditions, device, precision and run directory; the disk use of averages.

    Args:
        why: the reason for the precision, or "".
    """
    params = sum(p.numel() for p in model.parameters())
    net = getattr(model, "denoiser", model).net
    said = (
        f"{type(net).__name__} ({params:,} parameters) on {type(data).__name__}{conditions(model, data)}, "
        f"{trainer.strategy.root_device}, precision {trainer.precision}{f' ({why})' if why else ''}; run: {shown(run)}"
    )
    for kept in (c for c in trainer.callbacks if isinstance(c, PostHoc) and c.snapshots):
        size = kept.bytes(model) / 1e6
        said += (
            f"\naverages for widths chosen later: {kept.snapshots} snapshots of {len(kept.exponents)}, "
            f"{size:,.1f} MB in {shown(run)}/averages"
        )
    return said


def conditions(model: pl.LightningModule, data: pl.LightningDataModule) -> str:
    """What a diffusion model is conditioned on, in words that follow the name of the data; "" for other models."""
    if not isinstance(model, Diffusion):
        return ""
    if tokens := model.pipeline.tokens:
        return f", conditioned on text ({tokens.described})"
    kinds = model.pipeline.num_classes or model.pipeline.context_dim
    if not kinds:
        return ", unconditional"
    names = model.pipeline.class_names
    if not names:
        return f", conditioned on vectors of {kinds:,}"
    some = f" ({', '.join(names[:NAMED])}{', ...' if kinds > NAMED else ''})"
    return f", conditioned on {kinds:,} {getattr(data, 'conditions', 'classes')}{some}"


def hints(run: Path, argv: list[str], trainer: pl.Trainer) -> None:
    """Print the files written and the exact commands to continue with."""
    if not runs.checkpoints(run):
        return
    print(speed(trainer), end="")
    print("".join(c.said for c in trainer.callbacks if isinstance(c, Watch)), end="")
    for keeper in (c for c in trainer.callbacks if isinstance(c, Budget)):
        print(f"budget {clock(keeper.total)}, spent {clock(keeper.spent)}")
    here = shown(run)
    files = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and not p.name.startswith("."))
    print(f"files in {here}/: {', '.join(files[:12])}{' ...' if files[12:] else ''}")
    diffusion, model = tool("diffusion"), trainer.lightning_module
    if not isinstance(model, Diffusion):
        noisy = isinstance(model, NoisyClassifier)
        if "val/accuracy" in trainer.callback_metrics:
            share = float(trainer.callback_metrics["val/accuracy"])
            print(f"right on {share:.2%} of the test images" + (", mean over noise levels" if noisy else ""))
        if "val/psnr" in trainer.callback_metrics:
            print(f"reconstructed test images: PSNR {float(trainer.callback_metrics['val/psnr']):.2f} dB")
        if isinstance(model, Autoencoder):
            words = shlex.join([*of_data(trainer.datamodule), *of_latents(model, str(here))])
            print(f"next:\n  {diffusion} evaluate {here}\n  {diffusion} fit {words}\n  {board(here)}")
            return
        use = f"sample RUN --classifier {here} --scale 3" if noisy else f"evaluate RUN --features {here}"
        print(f"next:\n  {diffusion} {use}")
        return
    shows = given(model, trainer.datamodule)
    print(f"""next:
  {diffusion} sample {here}{shows} --n 64 --out grid.png
  {diffusion} evaluate {here}
  {diffusion} film {here}{shows} --out denoising.gif
  {board(here)}
  {diffusion} fit {shlex.join(without(argv, "--resume"))} --resume {here}""")


def given(model: Diffusion, data: pl.LightningDataModule) -> str:
    """The options of `diffusion sample` for what the model needs besides noise: an image, or a caption of the data."""
    image = " --image test" if model.pipeline.hint else ""
    if model.pipeline.tokens is not None and isinstance(data, ImageData):
        with suppress(ValueError):  # data of your own may have tokens without captions
            if text := next((text for text in data.texts("test") if text), ""):
                return f"{image} --prompt {shlex.quote(text)}"
    return image


def of_data(data: pl.LightningDataModule) -> list[str]:
    """The words of `diffusion fit` that name these data, with the arguments that are not at their defaults."""
    if isinstance(data, Prepared):
        return ["--data", str(shown(data.path))]
    words, known = ["--data", type(data).__name__], arguments(type(data))
    for name, value in spec(data)["init_args"].items():
        if name not in ("seed", "latents") and value != spec(known[name].default):
            words += [f"--data.{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def of_latents(model: Autoencoder, here: str) -> list[str]:
    """The words of `diffusion fit` that train a diffusion model on an autoencoder's latents."""
    halves = all(side % (2 * model.net.factor) == 0 for side in model.shape[1:])
    mults = "[1,2]" if halves else "[1]"
    net = ["--model.net", "UNet", "--model.net.width", "64", "--model.net.mults", mults]
    codec = ["--model.codec", "Frozen", "--model.codec.autoencoder", here, "--data.latents", "cache"]
    return [*codec, *net, "--model.schedule", "Cosine", "--model.target", "V"]


def speed(trainer: pl.Trainer) -> str:
    """Steps, images/s and training time, in one line; "" if no step was taken."""
    rate = next((c for c in trainer.callbacks if isinstance(c, Rate)), None)
    if rate is None or not rate.images:
        return ""
    return f"{trainer.global_step:,} steps, {rate.per_second:,.0f} images/s, {clock(rate.seconds)} of training\n"


def without(argv: list[str], option: str) -> list[str]:
    """The words of a command line without an option and its value."""
    kept = [a for i, a in enumerate(argv) if a != option and (i == 0 or argv[i - 1] != option)]
    return [a for a in kept if not a.startswith(f"{option}=")]
