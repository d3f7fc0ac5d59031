"""Whether a model's pictures show what their prompts say, for combinations that training has seen and held-out ones.

    python -m benchmarks.text RUN [--scales 1 1.5 2 3 4] [--n 1000] [--steps 20] [--json FILE]
    python -m benchmarks.text judge

The judge is a classifier of every attribute of the drawn sprites, trained once (a minute or two) on 40,000 real
drawings of all combinations and refused below 98 % of right answers on 5,000 others, for each attribute. A prompt names
every attribute of a picture that was never drawn for training, in one of the ways of the grammar. Agreement is the
share of samples in which the judge sees the value that the prompt names, with its 95 % interval (Wilson). `all` counts
a sample if every named attribute is right; `real` is the judge on drawings of the same prompts, the limit. The Frechet
distance is in the judge's features, of the samples for seen combinations, in units of the distance of as many real
drawings of the same prompts.
"""

import json
import math
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import machine
from diffusion.data.scenes import ATTRIBUTES, VALUES, attributes, draw_scenes, held_out
from diffusion.data.sentences import captions
from diffusion.generation.choices import Choices
from diffusion.generation.pipeline import Pipeline
from diffusion.metrics.features import FeatureNet
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.support.console import rows_of
from diffusion.support.files import atomic
from diffusion.support.paths import cache_root

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
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="UniPC")
    parser.add_argument("--epochs", type=int, default=4, help="of the judge")
    parser.add_argument("--json", type=Path, help="file of the figures")
    args = parser.parse_args(argv)
    net, right = judge(cache_root() / "features" / "sprites-attributes.pt", args.epochs)
    print("judge: " + ", ".join(f"{name} {share:.2%}" for name, share in right.items()), flush=True)
    if args.run == "judge":
        return 0
    pipeline = Pipeline.load(args.run, device="auto")
    if pipeline.tokens is None:
        raise SystemExit(f"{args.run}: trained without captions; train one with configs/sprites_text.yaml")
    rows, records = [("scale", "prompts", "FD ratio", "all", *ATTRIBUTES)], []
    for kind, scale in [("real", None), *(("samples", scale) for scale in args.scales)]:
        for seen in (True, False):
            record = measured(net, pipeline, scale, seen, args)
            records.append(record)
            ratio = record["frechet ratio"]
            cells = (share_of(record[name]) for name in ("all", *ATTRIBUTES))
            rows.append((kind if scale is None else f"{scale:g}", "seen" if seen else "held out",
                         f"{ratio:.2f}" if ratio else "", *cells))  # fmt: skip
            print(*rows[-1], flush=True)
    print(f"\n{args.n} prompts each, {args.sampler} {args.steps} steps, {machine()}\n{rows_of(rows)}")
    if args.json:
        what = {"run": str(args.run), "n": args.n, "steps": args.steps, "sampler": args.sampler, "machine": machine()}
        with atomic(args.json) as temporary:
            temporary.write_text(json.dumps(what | {"judge": right, "figures": records}, indent=1) + "\n")
    return 0


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
    table = attributes(TEST)
    right = shares(seen_in(net.eval(), scaled(draw_scenes(table, TEST)))[0], table)
    found = {name: right[name]["share"] for name in ATTRIBUTES}
    if min(found.values()) < WANTED:
        worst = min(found, key=found.__getitem__)
        file.unlink()
        raise SystemExit(f"judge: {worst} is right on {found[worst]:.2%}, wanted {WANTED:.0%}: give more --epochs")
    return net, found


def train(net: nn.Module, epochs: int) -> None:
    """Train the judge with Adam and a learning rate that falls to 0."""
    index = np.array(TRAIN)
    table = attributes(index)
    images, y = draw_scenes(table, index), torch.from_numpy(table)
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
    """A share with its interval, in per cent."""
    return f"{figure['share']:.1%} ({figure['low']:.1%} .. {figure['high']:.1%})" if figure["n"] else ""


# --- samples ------------------------------------------------------------------------------------------------


def prompted(n: int, seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (n,) and attributes (n, 7) of pictures that prompts describe, of seen or of held-out combinations."""
    index = np.arange(PROMPTS, PROMPTS + 12 * n)
    table = attributes(index)
    mine = np.flatnonzero(held_out(table) != seen)[:n]
    return index[mine], table[mine]


def measured(net: nn.Module, pipeline: Pipeline, scale: float | None, seen: bool, args) -> dict:
    """The agreement of samples at a guidance scale, or of real pictures for a scale of None, and the distance."""
    index, table = prompted(args.n, seen)
    real = scaled(draw_scenes(table, index))
    texts = captions(table, index, omitted=0.0)
    made = real if scale is None else torch.cat(list(sampled(pipeline, texts, scale, args)))
    found, features = seen_in(net, made)
    ratio = None
    if seen and scale is not None:
        ours, other = seen_in(net, real)[1], seen_in(net, scaled(draw_scenes(table, index - PROMPTS + OTHERS)))[1]
        floor = frechet_distance(Gaussian.of(other), Gaussian.of(ours))
        ratio = frechet_distance(Gaussian.of(features), Gaussian.of(ours)) / floor
    return {"scale": scale, "seen": seen, "frechet ratio": ratio} | shares(found, table)


def sampled(pipeline: Pipeline, texts: list[str], scale: float, args) -> Iterator[Tensor]:
    """Images of prompts, rounded to 8 bits."""
    chosen = Choices(sampler=args.sampler, steps=args.steps, scale=scale).apply(pipeline)
    for x in chosen.batches(len(texts), chosen.prompts(texts), batch_size=250, progress=True):
        yield pipeline.scaling.encode(pipeline.scaling.decode(x))


if __name__ == "__main__":
    raise SystemExit(main())
