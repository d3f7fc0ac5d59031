"""Attention on a CPU: torch's own against the plain formula, forward and backward, in two precisions.

    python -m benchmarks.attention [--rounds 12]

Reports the ratio of their times: `diffusion.nets.layers.attention` takes the formula where it is faster in training.
"""

import argparse
import math
from unittest.mock import patch

import torch
from torch.nn import functional as F

from benchmarks.common import alternate, machine, ratio, said, save
from diffusion.nets import layers

SHAPES = [(64, 4, 16, 16), (64, 4, 16, 22), (64, 4, 64, 64), (32, 4, 256, 256), (8, 4, 1024, 1024)]
WIDTH = 32  # of a head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    rows = []
    print(machine())
    for dtype in (torch.float32, torch.bfloat16):
        for batch, heads, n, m in SHAPES:
            q, k, v = (torch.randn(batch, heads, size, WIDTH, dtype=dtype, requires_grad=True) for size in (n, m, m))
            goal = torch.randn(batch, heads, n, WIDTH, dtype=dtype)
            ways = {"own": F.scaled_dot_product_attention, "formula": layers.attention}
            work = {name: lambda way=way, a=(q, k, v), g=goal: way(*a).backward(g) for name, way in ways.items()}
            with patch.dict(layers.SHORT, dict.fromkeys(layers.SHORT, math.inf)):  # for any number of tokens
                times = alternate(work, args.rounds)
            faster, precision = ratio(times["own"], times["formula"]), str(dtype).removeprefix("torch.")
            rows.append({"precision": precision, "shape": [batch, heads, n, m], "formula_times_as_fast": faster})
            print(f"{precision:8} {n:4} x {m:<4} the formula is {said(faster, 2)} times as fast as torch's own")
    print(f"written: {save('attention', {'rows': rows})}")


if __name__ == "__main__":
    main()
