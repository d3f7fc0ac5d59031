"""Sampling against the bare network, and against diffusers' pipelines with the same network and steps.

    python -m benchmarks.sampling [--n 16] [--steps 10] [--rounds 8] [--empty] [--clock cpu] [--engines onnx bf16]

Bare: the network called `steps` times on n images. Ours: `Diffusion.sample`, with per-image noise, clamp and
sampler. Theirs: DDIMPipeline and DDPMPipeline with their progress bars off, up to the array of images.
With --empty the network returns its input, so that only the overhead is timed. With --engines, ours is measured with
other ways of evaluating the network, too (`--engine`, `--compile` and `--precision` of `diffusion sample`); diffusers
stays at its defaults. A way that this machine does not have is left out.
"""

import argparse
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import torch

from benchmarks.common import CLOCKS, alternate, machine, ratio, said, save
from diffusion import Denoiser, Diffusion, Pipeline
from diffusion.nets.diffusers_unet import DiffusersUNet
from diffusion.nets.fastest import WAYS, evaluated
from diffusion.noise import Linear
from diffusion.samplers import DDIM, DDPM

OPTIONS = {
    "block_out_channels": [64, 128, 128], "layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": 32,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "sample_size": 32,
}  # fmt: skip


def by_engine(model: Pipeline, ways: list[str]) -> dict[str, Pipeline]:
    """The model with its network evaluated in other ways, copies of it where they change it."""
    found = {}
    for way in ways:
        try:
            net, half = evaluated(deepcopy(model.denoiser.net), way, model.shape)
        except (ImportError, ValueError) as error:
            print(f"no {way}: {error}")
            continue
        denoiser = Denoiser(net, model.denoiser.schedule, model.denoiser.target).eval()
        denoiser.precision = half
        found[way] = replace(model, denoiser=denoiser)
    return found


def main() -> None:
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=16, help="images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--empty", action="store_true", help="use a network that returns its input")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: other programs change it little")
    parser.add_argument("--engines", nargs="*", choices=WAYS[1:], default=[], help="further ways for ours")
    parser.add_argument("--samplers", nargs="+", choices=["DDIM", "DDPM"], default=["DDIM", "DDPM"])
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of the network's calls")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Diffusion(DiffusersUNet(3, OPTIONS), Linear(1000), shape=(3, 32, 32)).to(device).eval().pipeline
    body = model.denoiser.net.body
    if args.empty:
        body.forward = lambda x, clock, **options: SimpleNamespace(sample=x)
    x, clock = torch.randn(args.n, 3, 32, 32, device=device), torch.zeros(args.n, device=device)

    def mode():
        return torch.autocast(device.type, torch.bfloat16) if args.precision == "bf16" else nullcontext()

    def bare():
        with torch.no_grad(), mode():
            for _ in range(args.steps):
                body(x.contiguous(memory_format=torch.channels_last), clock)

    def ours(sampler, by=model):
        def run():
            with mode():
                by.sample(args.n, sampler=sampler, batch_size=args.n)

        return run

    def theirs(kind, scheduler):
        pipeline = kind(body, scheduler)
        pipeline.set_progress_bar_config(disable=True)

        def run():
            with mode():
                pipeline(args.n, num_inference_steps=args.steps, output_type="np")

        return run

    kinds = {"DDIM": (DDIM, DDIMPipeline, DDIMScheduler), "DDPM": (DDPM, DDPMPipeline, DDPMScheduler)}
    engines, sides = by_engine(model, args.engines), {"bare": bare}
    for name in args.samplers:
        sampler, pipeline, scheduler = kinds[name]
        sides[f"ours, {name}"] = ours(sampler(args.steps))
        sides |= {f"ours, {name}, {way}": ours(sampler(args.steps), by) for way, by in engines.items()}
        sides[f"diffusers, {name}"] = theirs(pipeline, scheduler(1000))
    times = alternate(sides, args.rounds, CLOCKS[args.clock])
    name = "sampling-empty" if args.empty else f"sampling-{args.n}"
    print(
        f"{machine()}; {args.n} images, {args.steps} steps, precision {args.precision}, {args.rounds} rounds, "
        f"{args.clock} time"
    )
    rows = []
    for side, spent in times.items():
        over = ratio(spent, times["bare"])
        rate = args.n / sorted(spent)[len(spent) // 2]
        step = sorted(spent)[len(spent) // 2] / args.steps
        rows.append({"side": side, "time_of_bare": over, "images_s": rate, "step_s": step})
        compared = f"{1e3 * step:.3f} ms per step" if args.empty else f"{said(over)} of the bare calls' time"
        print(f"{side:16} {rate:8.2f} images/s   {compared}")
    for kind in args.samplers:
        for side in (side for side in sides if side.startswith(f"ours, {kind}")):
            faster = ratio(times[f"diffusers, {kind}"], times[side])
            rows.append({"side": f"{side} against diffusers", "times_as_fast": faster})
            print(f"{side} is {said(faster)} times as fast as diffusers' pipeline")
    kept = {"n": args.n, "steps": args.steps, "precision": args.precision, "clock": args.clock, "rows": rows}
    print(f"written: {save(name, kept)}")


if __name__ == "__main__":
    main()
