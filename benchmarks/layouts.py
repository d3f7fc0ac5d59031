"""Contiguous against channels_last weights, in float32 and bfloat16: forward and backward passes of several networks.

    python -m benchmarks.layouts [--rounds 6] [--only "digits (AttentionUNet)"]

Reports the ratio of their times.
"""

import argparse
import copy

import torch

from benchmarks.common import alternate, machine, ratio, said, save
from diffusion.nets import AttentionUNet, ContextUNet, UNet

NETWORKS = {  # the network, and the shape of its input
    "reference (AttentionUNet)": (lambda: AttentionUNet(1), (8, 1, 32, 32)),
    "digits (AttentionUNet)": (lambda: AttentionUNet(1, (32, 64, 64), heads=2), (64, 1, 8, 8)),
    "sprites (ContextUNet)": (lambda: ContextUNet(3, 32), (32, 3, 16, 16)),
    "UNet": (lambda: UNet(3, 64, (1, 2, 2), 2, (1,), 32, scale_shift=False), (8, 3, 32, 32)),
}


def step(net: torch.nn.Module, x: torch.Tensor, mixed: bool) -> None:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
        out = net(x, torch.zeros(len(x), device=x.device))
    out.float().square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    print(machine())
    for name in args.only:
        make, shape = NETWORKS[name]
        torch.manual_seed(0)
        net, x = make().to(device), torch.randn(shape, device=device)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        for mixed in (False, True):
            work = {
                "contiguous": lambda m=mixed, n=net, v=x: step(n, v, m),
                "last": lambda m=mixed, n=last, v=x: step(n, v, m),
            }
            times = alternate(work, args.rounds)
            faster = ratio(times["last"], times["contiguous"])
            rows.append({"network": name, "precision": "bf16" if mixed else "32", "contiguous_times_as_fast": faster})
            print(f"{name:26} {rows[-1]['precision']:5} contiguous is {said(faster, 2)} times as fast as channels_last")
    print(f"written: {save('layouts', {'rows': rows})}")


if __name__ == "__main__":
    main()
