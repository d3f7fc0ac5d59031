"""The original code's loss computation, reimplemented from its description, against ours on the same network.

    python -m benchmarks.origin [--batch 128] [--steps 2] [--rounds 5] [--cpu-batch 16]

The original: a Python product over the betas gives alpha-bar for each image; images are loaded, scaled and noised one
by one, in float32. Ours: the step of `diffusion fit` alone (batch by index from uint8, one formula for all images), in
float32 and in bfloat16.
"""

import argparse
import copy

import torch

from benchmarks.common import RandomGrey, alternate, machine, ratio, said, save
from diffusion import Condition
from diffusion.data.batches import Batches
from diffusion.denoiser import Denoiser
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import Linear
from diffusion.noise.draws import StepDraws

T = 1000


class Items(torch.utils.data.Dataset):
    """One image at a time, padded and scaled on access."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.nn.functional.pad(self.images[k].float() / 255, (2, 2, 2, 2)) * 2 - 1


class Origin:
    """The original training step."""

    def __init__(self, net: torch.nn.Module, images: torch.Tensor, batch: int) -> None:
        self.net = net
        self.betas = torch.linspace(1e-4, 0.02, T).tolist()
        self.loader = torch.utils.data.DataLoader(Items(images[:, :, 2:-2, 2:-2]), batch, shuffle=True, drop_last=True)
        self.device = next(net.parameters()).device
        self.optimizer = torch.optim.Adam(net.parameters(), 2e-4)
        self.batches = iter(())

    def alpha_bar(self, index: int) -> float:
        product = 1.0
        for beta in self.betas[: index + 1]:
            product *= 1 - beta
        return product

    def step(self) -> None:
        x0 = next(self.batches, None)
        if x0 is None:
            self.batches = iter(self.loader)
            x0 = next(self.batches)
        x0 = x0.to(self.device)
        index = torch.randint(0, T, (len(x0),), device=self.device)
        eps, noisy = torch.randn_like(x0), []
        for k in range(len(x0)):
            a = self.alpha_bar(int(index[k]))
            noisy.append(a**0.5 * x0[k] + (1 - a) ** 0.5 * eps[k])
        loss = (self.net(torch.stack(noisy), index.float()) - eps).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Ours:
    """The step of `diffusion fit` without Lightning, which benchmarks/overhead.py measures."""

    def __init__(self, net: torch.nn.Module, images: torch.Tensor, batch: int, mixed: bool) -> None:
        self.denoiser, self.mixed = Denoiser(net.to(memory_format=torch.channels_last), Linear(T)), mixed
        self.device = next(net.parameters()).device
        y = torch.zeros(len(images), dtype=torch.long)
        self.loader = Batches(images, y, batch, shuffle=True, drop_last=True, device=self.device)
        self.optimizer = torch.optim.AdamW(net.parameters(), 2e-4, weight_decay=0, fused=True)
        self.batches, self.objective, self.count = iter(()), Objective(), 0

    def step(self) -> None:
        x0, _ = next(self.batches, (None, None))
        if x0 is None:
            self.batches = iter(self.loader)
            x0, _ = next(self.batches)
        draws = StepDraws(0, self.count, 0, self.device)
        self.count += 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss = self.objective(self.denoiser, x0, Condition(), draws.normal, draws.uniform).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, default=128 if gpu else 16, help="images (default 128, 16 on a CPU)")
    parser.add_argument("--steps", type=int, default=20 if gpu else 1, help="of a side in a round")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")
    torch.manual_seed(0)
    net, images = AttentionUNet(1), RandomGrey().arrays("train")[0]
    make = lambda: copy.deepcopy(net).to(device)  # noqa: E731
    sides = {
        "origin": Origin(make(), images, args.batch),
        "ours, float32": Ours(make(), images, args.batch, False),
        "ours, bfloat16": Ours(make(), images, args.batch, True),
    }
    times = alternate({k: (lambda s=s: [s.step() for _ in range(args.steps)]) for k, s in sides.items()}, args.rounds)
    print(f"{machine()}; batch {args.batch}, {args.rounds} rounds of {args.steps} steps, 12,919,041 parameters")
    rows = []
    for name, spent in times.items():
        faster, each = ratio(times["origin"], spent), sorted(spent)[len(spent) // 2] / args.steps
        rows.append({"side": name, "step_s": each, "times_as_fast": faster})
        print(f"{name:16} {1 / each:8.2f} steps/s   {said(faster, 2)} times the origin's speed")
    print(f"written: {save('origin', {'batch': args.batch, 'rows': rows})}")


if __name__ == "__main__":
    main()
