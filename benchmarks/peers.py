"""Training against two other packages: diffusers' loop and lucidrains' Trainer, in blocks that alternate with ours.

    python -m benchmarks.peers [--batch 16] [--block 2] [--pairs 8] [--precision 32-true bf16-mixed]

Ours is `diffusion fit` with all its default callbacks. diffusers: the pattern of its example for unconditional
training (Accelerate, PIL images through torchvision's transforms, add_noise, EMAModel, the loss read at every step).
lucidrains: its own `Trainer`, on a folder of PNGs. Each is compared with a network of ours of the same size: equal
parameters and FLOPs for diffusers', 4.1 % fewer parameters and 7.2 % more FLOPs for lucidrains'. All have EMA, clipping
and flips. Peak memory is that of a process that trains one side alone: on a GPU torch's allocation, otherwise the
growth of resident memory since the imports. Requires: pip install diffusers accelerate denoising-diffusion-pytorch
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import RandomColour, machine, memory, ratio, said, save
from benchmarks.overhead import measure
from diffusion.training.build import quiet

UNET = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "block_out_channels": (64, 128, 128),
    "norm_num_groups": 32, "attention_head_dim": 32,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
OURS = {
    "diffusers": {"blocks": 2, "resample_in_blocks": False},  # 6,472,195 parameters, 3.17 GFLOPs, as theirs
    "lucidrains": {"blocks": 1, "resample_in_blocks": True},  # 5,034,307 and 2.57, theirs 5,247,491 and 2.40
}


class Pictures(torch.utils.data.Dataset):
    """PIL images through torchvision's transforms, one at a time."""

    def __init__(self) -> None:
        from torchvision import transforms

        images = RandomColour().arrays("train")[0].permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(image) for image in images]
        self.change = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self.change(self.images[k])


class Diffusers:
    """The loop that diffusers' documentation shows."""

    def __init__(self, batch: int, precision: str) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16-mixed" else "no")
        net = UNet2DModel(**UNET)
        self.ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        loader = torch.utils.data.DataLoader(Pictures(), batch, shuffle=True)
        self.noise = DDPMScheduler(1000)
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self.net, self.optimizer, self.loader, self.rate = self.accelerator.prepare(net, optimizer, loader, rate)
        self.ema.to(self.accelerator.device)
        self.batches = iter(())

    def steps(self, n: int) -> None:
        self.net.train()
        for _ in range(n):
            x0 = next(self.batches, None)
            if x0 is None:
                self.batches = iter(self.loader)
                x0 = next(self.batches)
            eps = torch.randn_like(x0)
            t = torch.randint(0, 1000, (len(x0),), device=x0.device)
            with self.accelerator.accumulate(self.net):
                out = self.net(self.noise.add_noise(x0, eps, t), t).sample
                loss = torch.nn.functional.mse_loss(out.float(), eps)
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
            self.ema.step(self.net.parameters())
            loss.detach().item()


class Lucidrains:
    """The Trainer of denoising-diffusion-pytorch, run for n more steps."""

    def __init__(self, batch: int, precision: str) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

        self.folder = tempfile.TemporaryDirectory()
        place = Path(self.folder.name)
        (place / "images").mkdir()
        for k, image in enumerate(RandomColour().arrays("train")[0].permute(0, 2, 3, 1).numpy()):
            Image.fromarray(np.ascontiguousarray(image)).save(place / "images" / f"{k}.png")
        model = GaussianDiffusion(Unet(64, dim_mults=(1, 2, 2), channels=3), image_size=32)
        self.trainer = Trainer(
            model, str(place / "images"), train_batch_size=batch, train_num_steps=0, results_folder=str(place / "out"),
            save_and_sample_every=10**9, calculate_fid=False, amp=precision == "bf16-mixed",
            mixed_precision_type="bf16",
        )  # fmt: skip

    def steps(self, n: int) -> None:
        self.trainer.train_num_steps = self.trainer.step + n
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            self.trainer.train()


PEERS = {"diffusers": Diffusers, "lucidrains": Lucidrains}


def options(peer: str) -> list[str]:
    """Options with which `diffusion fit` trains like a peer."""
    net = {"width": 64, "mults": "[1,2,2]", "attention": "[1]", "head_width": 32, "scale_shift": False, "dropout": 0.0}
    words = ["--data", "benchmarks.common.RandomColour", "--data.labels", "false", "--model.net", "UNet"]
    return words + [
        w
        for k, v in (net | OURS[peer]).items()
        for w in (f"--model.net.{k}", str(v).lower() if v in (True, False) else str(v))
    ]


def alone(side: str, peer: str, batch: int, precision: str) -> int:
    """Peak bytes of a process that trains one side alone."""
    words = [sys.executable, "-m", "benchmarks.peers", "--alone", side, peer, str(batch), precision]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak(side: str, peer: str, batch: int, precision: str) -> int:
    """`alone` in a child process."""
    import accelerate  # noqa: F401  both sides have all imports
    import denoising_diffusion_pytorch  # noqa: F401
    import diffusers  # noqa: F401

    before = memory()[0]
    if side == "ours":
        measure("configs/cifar10.yaml", batch, 2, 1, precision, lambda model: lambda n: None, options(peer))
    else:
        PEERS[peer](batch, precision).steps(6)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory()[1] - before


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        side, peer, batch, precision = sys.argv[2:]
        quiet()
        print(peak(side, peer, int(batch), precision))
        return
    from accelerate.state import AcceleratorState

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128 if torch.cuda.is_available() else 16)
    parser.add_argument("--block", type=int, default=2, help="steps (default 2)")
    parser.add_argument("--pairs", type=int, default=8, help="blocks of each side (default 8)")
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    args = parser.parse_args()
    quiet()
    print(f"{machine()}; batch {args.batch}, {args.pairs} pairs of {args.block} steps")
    rows = []
    for precision in args.precision:
        for peer, kind in PEERS.items():
            AcceleratorState._reset_state(True)  # else it keeps the first precision
            make = lambda model, k=kind, p=precision: k(args.batch, p).steps  # noqa: E731
            turns = measure("configs/cifar10.yaml", args.batch, args.block, args.pairs, precision, make, options(peer))
            faster = ratio(turns.other, turns.fit)
            rate = args.batch * args.block / sorted(turns.fit)[len(turns.fit) // 2]
            ours, theirs = (alone(side, peer, args.batch, precision) for side in ("ours", peer))
            rows.append(
                {"peer": peer, "precision": precision, "times_as_fast": faster, "images_s": rate,
                 "peak_bytes": ours, "their_peak_bytes": theirs}
            )  # fmt: skip
            print(
                f"{precision}, {peer}: ours is {said(faster, 2)} times as fast ({rate:.1f} images/s) "
                f"with {ours / theirs:.2f} of the memory ({ours / 2**20:,.0f} MiB, theirs {theirs / 2**20:,.0f})"
            )
    print(f"written: {save('peers', {'batch': args.batch, 'rows': rows})}")


if __name__ == "__main__":
    main()
