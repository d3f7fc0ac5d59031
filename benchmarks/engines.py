"""The network of a run in torch and in ONNX Runtime: CPU time of an evaluation, in turn, and the difference.

    python -m benchmarks.engines RUN [--batch 16] [--rounds 15]

CPU time of interleaved evaluations, so that other programs on the machine matter little. docs/export.md has figures.
"""

import argparse
from statistics import quantiles

import torch

from diffusion import Pipeline
from diffusion.nets.onnx_graph import channels_in
from diffusion.nets.onnx_net import accelerated
from diffusion.nets.speed import interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    words = parser.parse_args()
    pipeline, n = Pipeline.load(words.run), words.batch
    net = pipeline.denoiser.net
    engine = accelerated(net, pipeline.shape)
    x = torch.randn(n, channels_in(net, pipeline.shape[0]), *pipeline.shape[1:])
    given = (x, torch.linspace(1, 900, n), pipeline.in_turn(n))
    with torch.no_grad():
        print(f"largest difference {float((net(*given) - engine(*given)).abs().max()):.1e}")
        spent = interleaved([lambda: net(*given), lambda: engine(*given)], words.rounds)
    low, middle, high = quantiles([a / b for a, b in zip(*spent, strict=True)], n=4)
    mine, its = (1000 * sorted(times)[len(times) // 2] for times in spent)
    print(
        f"batch {n}, {torch.get_num_threads()} threads: torch {mine:.2f} ms, ONNX Runtime {its:.2f} ms of CPU time; "
        f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    main()
