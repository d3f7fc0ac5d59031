"""More entrants: azula, and the loop of the original implementation."""

import torch
from torch import Tensor, nn

from benchmarks.origin import Origin
from benchmarks.race.images import endless
from benchmarks.race.peers import EQUAL_LR, EVALUATIONS, Entrant
from diffusion import Diffusion
from diffusion.nets import AttentionUNet
from diffusion.noise import Linear
from diffusion.samplers import DDIM


class Azula(Entrant):
    """azula: its tutorial on MNIST, with labels, as there."""

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        from azula.denoise import KarrasDenoiser
        from azula.noise import VPSchedule

        super().__init__(images, y, equal)
        self.batch, rate, widths = (equal, EQUAL_LR, (32, 64, 64)) if equal else (64, 3e-4, (16, 32, 64))
        self.y = y
        self.net = KarrasDenoiser(backbone=Wrapped(self.shape[0], widths, int(y.max()) + 1), schedule=VPSchedule())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate)
        self.batches = endless(images, y, self.batch)
        self.recipe = f"its MNIST tutorial, with labels, widths {widths}, batch {self.batch}, lr {rate:g}"
        self.sampled = "DDIM 64"

    def step(self) -> None:
        x0, y = next(self.batches)
        self.net.loss(x0, torch.rand(len(x0)), label=y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        from azula.sample import DDIMSampler

        sampler = DDIMSampler(self.net, steps=64, silent=True)
        y = self.y[torch.randperm(len(self.y))[torch.arange(n) % len(self.y)]]
        return sampler(sampler.init((n, *self.shape)), label=y).clamp(-1, 1), y


class Wrapped(nn.Module):
    """azula's U-Net with the embeddings of log SNR and label that its tutorial describes."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int, features: int = 64) -> None:
        from azula.nn.unet import UNet

        super().__init__()
        blocks = [2] * len(widths)
        self.unet = UNet(channels, channels, hid_channels=widths, hid_blocks=blocks, mod_features=features)
        self.label = nn.Embedding(classes, features)
        self.time = nn.Sequential(nn.Linear(1, features), nn.SiLU(), nn.Linear(features, features))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.unet(x, self.label(label) + self.time(t[..., None]))


class Original(Entrant):
    """The original implementation's training step with its reference network, sampled by this project's sampler."""

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        super().__init__(images, y, equal)
        self.batch = 128
        widths = {} if self.size >= 32 else {"widths": (64, 128, 256)}
        self.net = AttentionUNet(self.shape[0], **widths)
        self.origin = Origin(self.net, images, self.batch)
        self.origin.loader = endless(images, y, self.batch)
        self.origin.batches = (x0 for x0, _ in self.origin.loader)
        self.recipe = "its loss image by image, reference network, batch 128, lr 0.0002"
        self.sampled = f"this project's DDIM {EVALUATIONS}"
        self.documented = "DDPM 1000", 1000 / EVALUATIONS

    def step(self) -> None:
        self.net.train()
        self.origin.step()

    def sample(self, n: int) -> tuple[Tensor, None]:
        model = Diffusion(self.net, Linear(1000), shape=self.shape).eval().pipeline
        return model.sample(n, sampler=DDIM(EVALUATIONS), batch_size=n), None
