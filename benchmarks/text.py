"""Whether a model's pictures show what their prompts say, for combinations that training has seen and held-out ones.

    python -m benchmarks.text RUN [--scales 1 1.5 2 3 4] [--n 1000] [--sampler UniPC] [--steps 20] [--grid karras]
    python -m benchmarks.text judge

The judge is a classifier of every attribute of the drawn sprites, trained once (a minute or two) on 40,000 real
drawings of all combinations and refused below 98 % of right answers on 5,000 others, for each attribute. A prompt names
every attribute of a picture that was never drawn for training, in one of the ways of the grammar. Agreement is the
share of samples in which the judge sees the value that the prompt names, with its 95 % interval (Wilson). `all` counts
a sample if every named attribute is right; the first row, drawings of the same prompts, is the limit. The Frechet
distance is in the judge's features, in units of that of as many other drawings of the same attributes. Figures and
tables are saved in results/text-*.json and .md.
"""

import math
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import machine, save
from diffusion.bench.tables import table
from diffusion.data.scenes import ATTRIBUTES, VALUES, attributes, draw_scenes, held_out
from diffusion.data.sentences import captions
from diffusion.generation.choices import Choices
from diffusion.generation.pipeline import Pipeline
from diffusion.metrics.features import FeatureNet
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.support.files import atomic
from diffusion.support.paths import cache_root
from diffusion.support.specs import spec

SIZES = [1 + len(values) for values in VALUES.values()]  # 0 is "does not apply"
TRAIN, TEST = range(1_000_000, 1_040_000), range(2_000_000, 2_005_000)  # numbers of the judge's pictures
PROMPTS, OTHERS = 3_000_000, 4_000_000  # first numbers of the prompts' pictures, and of others with their attributes
WANTED = 0.98
NOISE = 0.05  # standard deviation of noise on the judge's pictures, so that faint faults do not decide
Z = 1.959964


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run on Sprites with captions, or the word judge, which only trains the judge")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--n", type=int, default=1000, help="prompts of seen combinations, and of held-out ones")
    parser.add_argument("--sampler", help="default: the run's")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--grid", help="of the sampler's steps")
    parser.add_argument("--epochs", type=int, default=4, help="of the judge")
    args = parser.parse_args(argv)
    net, right = judge(cache_root() / "features" / "sprites-attributes.pt", args.epochs)
    print("judge: " + ", ".join(f"{name} {share:.2%}" for name, share in right.items()), flush=True)
    if args.run == "judge":
        return 0
    pipeline = Pipeline.load(args.run, device="auto")
    if pipeline.tokens is None:
        raise SystemExit(f"{args.run}: trained without captions; train one with configs/sprites_text.yaml")
    walk = chosen(pipeline, 1.0, args).sampler
    how = {"run": Path(args.run).name, "n": args.n, "sampler": spec(walk), "judge": right}
    records = []
    for scale in (None, *args.scales):
        for seen in (True, False):
            records.append(measured(net, pipeline, scale, seen, args))
            file = save("text", how | {"figures": records})  # after each, so that a run that is stopped leaves some
    text = tables(records, f"{args.n:,} prompts each, {type(walk).__name__} with {walk.steps} steps, {machine()}")
    with atomic(file.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    print(f"{text}\n{file}")
    return 0


def tables(records: list[dict], how: str) -> str:
    """The figures as two Markdown tables, of seen and of held-out combinations."""
    parts = [f"Share of samples in which the judge sees what the prompt names, in %, with 95 % intervals; {how}."]
    for seen in (True, False):
        rows = [
            [
                "drawings" if record["scale"] is None else f"{record['scale']:g}",
                *(share_of(record[name]) for name in ("all", *ATTRIBUTES)),
                "" if record["frechet ratio"] is None else f"{record['frechet ratio']:.2f}",
            ]
            for record in records
            if record["seen"] == seen
        ]
        name = "seen" if seen else "held out"
        parts.append(table([f"{name}: scale", "all", *ATTRIBUTES, "Frechet / floor"], rows))
    return "\n\n".join(parts) + "\n"


# --- judge --------------------------------------------------------------------------------------------------


def judge(file: Path, epochs: int = 4) -> tuple[nn.Module, dict[str, float]]:
    """The classifier of attributes, from a file or trained into it, and the shares of its right answers.

    Raises:
        SystemExit: an attribute is recognised on less than 98 % of the real pictures.
    """
    torch.manual_seed(0)
    net = FeatureNet(3, sum(SIZES), (16, 32, 64), 64)
    if file.is_file():
        net.load_state_dict(torch.load(file, weights_only=True))
    else:
        print(f"training the judge on {len(TRAIN):,} drawings", flush=True)
        train(net, epochs)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            torch.save(net.state_dict(), temporary)
    wanted = attributes(TEST)
    right = shares(seen_in(net.eval(), scaled(draw_scenes(wanted, TEST)))[0], wanted)
    found = {name: right[name]["share"] for name in ATTRIBUTES}
    if min(found.values()) < WANTED:
        worst = min(found, key=found.__getitem__)
        file.unlink()
        raise SystemExit(f"judge: {worst} is right on {found[worst]:.2%}, wanted {WANTED:.0%}: give more --epochs")
    return net, found


def train(net: nn.Module, epochs: int) -> None:
    """Train the judge with Adam and a learning rate that falls to 0."""
    index = np.array(TRAIN)
    wanted = attributes(index)
    images, y = draw_scenes(wanted, index), torch.from_numpy(wanted)
    batches = [list(torch.randperm(len(index)).split(256)) for _ in range(epochs)]
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, sum(map(len, batches)))
    for epoch in batches:
        for batch in epoch:
            x = scaled(images[batch.numpy()])
            logits = net(x + NOISE * torch.randn_like(x)).split(SIZES, dim=1)
            loss = sum(F.cross_entropy(part, y[batch, k]) for k, part in enumerate(logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()


def scaled(images: np.ndarray) -> Tensor:
    """Pictures (N, H, W, C) uint8 as (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 127.5 - 1


@torch.no_grad()
def seen_in(net: nn.Module, x: Tensor) -> tuple[np.ndarray, Tensor]:
    """The attributes (N, 7) that the judge sees in images, among those that apply, and its features (N, D)."""
    found, features = [], []
    for part in x.split(500):
        features.append(net.features(part))
        logits = net.head(features[-1]).split(SIZES, dim=1)
        found.append(torch.stack([v[:, 1:].argmax(1) + 1 for v in logits], 1))
    return torch.cat(found).numpy(), torch.cat(features)


def shares(found: np.ndarray, wanted: np.ndarray) -> dict[str, dict[str, float]]:
    """The shares of right attributes, where one was wanted, and of images with all of them right: "all"."""
    right = (found == wanted) | (wanted == 0)
    kept = {name: right[wanted[:, k] > 0, k] for k, name in enumerate(ATTRIBUTES)} | {"all": right.all(1)}
    return {name: interval(int(v.sum()), len(v)) for name, v in kept.items()}


def interval(right: int, n: int) -> dict[str, float]:
    """A share with its 95 % interval. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    p, z2 = right / max(n, 1), Z * Z / max(n, 1)
    middle, half = (p + z2 / 2) / (1 + z2), math.sqrt(z2 * (p * (1 - p) + z2 / 4)) / (1 + z2)
    return {"share": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def share_of(figure: dict[str, float]) -> str:
    """A share with its interval, in per cent; "" for a share of nothing."""
    share, low, high = (100 * figure[name] for name in ("share", "low", "high"))
    return f"{share:.1f} ({low:.1f} .. {high:.1f})" if figure["n"] else ""


# --- samples ------------------------------------------------------------------------------------------------


def prompted(n: int, seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (n,) and attributes (n, 7) of pictures that prompts describe, of seen or of held-out combinations."""
    index = np.arange(PROMPTS, PROMPTS + 12 * n)
    found = attributes(index)
    mine = np.flatnonzero(held_out(found) != seen)[:n]
    return index[mine], found[mine]


def measured(net: nn.Module, pipeline: Pipeline, scale: float | None, seen: bool, args) -> dict:
    """The agreement of samples at a guidance scale, or of real pictures for a scale of None, and the distance."""
    index, wanted = prompted(args.n, seen)
    real = scaled(draw_scenes(wanted, index))
    texts = captions(wanted, index, omitted=0.0)
    made = real if scale is None else torch.cat(list(sampled(pipeline, texts, scale, args)))
    found, features = seen_in(net, made)
    ratio = None
    if scale is not None:
        ours, other = seen_in(net, real)[1], seen_in(net, scaled(draw_scenes(wanted, index - PROMPTS + OTHERS)))[1]
        floor = frechet_distance(Gaussian.of(other), Gaussian.of(ours))
        ratio = frechet_distance(Gaussian.of(features), Gaussian.of(ours)) / floor
    return {"scale": scale, "seen": seen, "frechet ratio": ratio} | shares(found, wanted)


def chosen(pipeline: Pipeline, scale: float, args) -> Pipeline:
    """The model with the chosen guidance scale and sampler."""
    arguments = {"grid": args.grid} if args.grid else {}
    return Choices(sampler=args.sampler, steps=args.steps, scale=scale, arguments=arguments).apply(pipeline)


def sampled(pipeline: Pipeline, texts: list[str], scale: float, args) -> Iterator[Tensor]:
    """Images of prompts, rounded to 8 bits."""
    made = chosen(pipeline, scale, args)
    for x in made.batches(len(texts), made.prompts(texts), batch_size=250, progress=True):
        yield pipeline.scaling.encode(pipeline.scaling.decode(x))


if __name__ == "__main__":
    raise SystemExit(main())
