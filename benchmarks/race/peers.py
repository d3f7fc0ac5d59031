"""Other packages' training loops, each by its own documented recipe, on images in memory.

Every class trains one network step by step. `equal` asks for the second entry: about the size of this project's
network, its batch and a learning rate of 1e-3, where the recipe lets them be set. Horizontal flips are off everywhere,
since a mirrored digit is not a digit. Levels of a network that are smaller than one pixel are left out.
"""

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from os import devnull
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.race.images import endless, scaled

EQUAL_LR = 1e-3
EVALUATIONS = 50  # of samplers that would otherwise take hundreds


class Entrant(ABC):
    """A training loop in the race.

    Args:
        images, y: raw images (N, C, H, W) and their labels.
        equal: the batch of this project's entries, for the second entry; None for the documented recipe.
    Attributes:
        recipe: what it does, for the table.
        sampled: the sampler that makes the images that are judged.
        documented: (name, evaluations over those of `sampled`) of the documented sampler where that is another; its
            time is in proportion, and its images are not judged.
    """

    recipe: str
    sampled: str
    documented: tuple[str, float] | None = None
    batch: int
    net: nn.Module

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        self.shape, self.size = tuple(images.shape[1:]), images.shape[-1]

    @abstractmethod
    def step(self) -> None:
        """One training step."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that it samples with."""
        return copy.deepcopy(self.net.state_dict())

    def load(self, weights: dict[str, Tensor]) -> None:
        """Sample with these weights from now on."""
        self.net.load_state_dict(weights)

    @abstractmethod
    def sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """n images (n, C, H, W) in [-1, 1], and their labels if it was asked for classes."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())


class Lucidrains(Entrant):
    """denoising-diffusion-pytorch: the `Trainer` of its README on a folder of PNGs, without mixed precision.

    Its loader gets no worker processes, which would share the one core.
    """

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

        super().__init__(images, y, equal)
        self.folder = tempfile.TemporaryDirectory()
        place = Path(self.folder.name)
        (place / "images").mkdir()
        channels = self.shape[0]
        for k, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image[..., 0] if channels == 1 else image).save(place / "images" / f"{k}.png")
        net = (
            Unet(32, dim_mults=(1, 2, 2), channels=channels)
            if equal
            else Unet(64, dim_mults=(1, 2, 4, 8), channels=channels)
        )
        self.model = GaussianDiffusion(net, image_size=self.size, timesteps=1000, sampling_timesteps=EVALUATIONS)
        self.batch, rate, gathered = (equal, EQUAL_LR, 1) if equal else (32, 8e-5, 2)
        with open(devnull, "w") as nothing, redirect_stdout(nothing):
            self.trainer = Trainer(
                self.model, str(place / "images"), train_batch_size=self.batch, train_lr=rate, train_num_steps=0,
                gradient_accumulate_every=gathered, ema_decay=0.995, amp=False, calculate_fid=False,
                augment_horizontal_flip=False, save_and_sample_every=10**9, results_folder=str(place / "out"),
                convert_image_to="L" if channels == 1 else None,
            )  # fmt: skip
        loader = torch.utils.data.DataLoader(self.trainer.ds, self.batch, shuffle=True)
        self.trainer.dl = (batch for _ in iter(int, 1) for batch in loader)
        self.net = self.trainer.ema.ema_model
        width = "Unet(32, (1, 2, 2))" if equal else "Unet(64, (1, 2, 4, 8))"
        self.recipe = f"`Trainer`, `{width}`, batch {self.batch} x {gathered}, lr {rate:g}"
        self.sampled = f"DDIM {EVALUATIONS}"
        self.documented = "DDIM 250", 250 / EVALUATIONS

    def step(self) -> None:
        self.trainer.train_num_steps = self.trainer.step + 1
        with open(devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            self.trainer.train()

    def sample(self, n: int) -> tuple[Tensor, None]:
        with open(devnull, "w") as nothing, redirect_stderr(nothing):
            return self.net.sample(batch_size=n) * 2 - 1, None


class Diffusers(Entrant):
    """diffusers: the loop of its example train_unconditional with its defaults and EMA."""

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        super().__init__(images, y, equal)
        widths = (32, 64, 64) if equal else (128, 128, 256, 256, 512, 512)
        widths = widths[: self.size.bit_length()]
        last = len(widths) - 2  # its example has attention in the last level but one
        net = UNet2DModel(
            sample_size=self.size, in_channels=self.shape[0], out_channels=self.shape[0],
            layers_per_block=1 if equal else 2, block_out_channels=widths,
            down_block_types=["AttnDownBlock2D" if k == last else "DownBlock2D" for k in range(len(widths))],
            up_block_types=["AttnUpBlock2D" if k == 1 else "UpBlock2D" for k in range(len(widths))],
        )  # fmt: skip
        self.batch, rate, rise = (equal, EQUAL_LR, 100) if equal else (16, 1e-4, 500)
        steps = 100 * len(images) // self.batch
        optimizer = torch.optim.AdamW(net.parameters(), rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.noise, self.accelerator = DDPMScheduler(1000), Accelerator(cpu=True)
        self.ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        rate_plan = get_scheduler("cosine", optimizer, num_warmup_steps=rise, num_training_steps=max(steps, 5000))
        self.trained, self.optimizer, self.rate = self.accelerator.prepare(net, optimizer, rate_plan)
        self.net = copy.deepcopy(net)
        self.batches = endless(images, y, self.batch)
        blocks = f"widths {widths}, {1 if equal else 2} layers each"
        self.recipe = f"its script's loop, `UNet2DModel` with {blocks}, batch {self.batch}, lr {rate:g}, EMA"
        self.sampled = f"DDIM {EVALUATIONS}"
        self.documented = "DDPM 1000", 1000 / EVALUATIONS

    def step(self) -> None:
        x0, _ = next(self.batches)
        self.trained.train()
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),)).long()
        with self.accelerator.accumulate(self.trained):
            out = self.trained(self.noise.add_noise(x0, eps, t), t).sample
            loss = nn.functional.mse_loss(out.float(), eps.float())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.trained.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        self.ema.step(self.trained.parameters())
        loss.detach().item()

    def weights(self) -> dict[str, Tensor]:
        self.ema.copy_to(self.net.parameters())
        return copy.deepcopy(self.net.state_dict())

    def sample(self, n: int) -> tuple[Tensor, None]:
        from diffusers import DDIMPipeline, DDIMScheduler

        pipeline = DDIMPipeline(self.net, DDIMScheduler(1000))
        pipeline.set_progress_bar_config(disable=True)
        found = pipeline(n, num_inference_steps=EVALUATIONS, output_type="np").images
        return torch.from_numpy(found).permute(0, 3, 1, 2) * 2 - 1, None


class SmallDiffusion(Entrant):
    """smalldiffusion: its example fashion_mnist_unet."""

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        from smalldiffusion import Scaled, ScheduleLogLinear, Unet, training_loop
        from torch_ema import ExponentialMovingAverage

        super().__init__(images, y, equal)
        self.batch, rate, width = (equal, EQUAL_LR, 32) if equal else (min(1024, len(images)), 7e-4, 64)
        self.schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
        channels = self.shape[0]
        self.net = Scaled(Unet)(
            self.size, channels, channels, ch=width, ch_mult=(1, 1, 2), attn_resolutions=(self.size // 2,)
        )
        self.ema = ExponentialMovingAverage(self.net.parameters(), decay=0.999)
        self.steps = self.loop(training_loop, images, y, rate)
        self.recipe = f"its `fashion_mnist_unet`, width {width}, batch {self.batch}, lr {rate:g}, EMA"
        self.sampled = "its sampler, 20 steps, gam 1.6"

    def loop(self, training_loop, images: Tensor, y: Tensor, rate: float) -> Iterator:
        from accelerate import Accelerator

        loader = torch.utils.data.DataLoader(scaled(images), self.batch, shuffle=True)
        with open(devnull, "w") as nothing, redirect_stderr(nothing):
            yield from training_loop(loader, self.net, self.schedule, Accelerator(cpu=True), epochs=10**6, lr=rate)

    def step(self) -> None:
        next(self.steps)
        self.ema.update()

    def weights(self) -> dict[str, Tensor]:
        with self.ema.average_parameters():
            return copy.deepcopy(self.net.state_dict())

    def load(self, weights: dict[str, Tensor]) -> None:
        self.steps.close()  # otherwise it keeps the last step's tensors, GBs with a batch of 1,024
        super().load(weights)

    def sample(self, n: int) -> tuple[Tensor, None]:
        from accelerate import Accelerator
        from smalldiffusion import samples

        *_, x0 = samples(
            self.net, self.schedule.sample_sigmas(20), gam=1.6, batchsize=n, accelerator=Accelerator(cpu=True)
        )
        return x0, None


class TorchCFM(Entrant):
    """torchcfm: its notebook mnist_example, flow matching with minibatch optimal transport, by an adaptive solver."""

    def __init__(self, images: Tensor, y: Tensor, equal: int | None) -> None:
        from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
        from torchcfm.models.unet import UNetModel

        super().__init__(images, y, equal)
        self.batch = equal or 128
        small = {"channel_mult": (1, 2, 2), "attention_resolutions": str(self.size // 2)} if self.size < 16 else {}
        self.net = UNetModel(dim=self.shape, num_channels=32, num_res_blocks=1, **small)
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.flow = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
        self.batches = endless(images, y, self.batch)
        self.recipe = f"its `mnist_example` (OT-CFM), batch {self.batch}, lr 0.001"
        self.sampled = "dopri5, tolerance 1e-4"

    def step(self) -> None:
        x1, _ = next(self.batches)
        self.net.train()
        self.optimizer.zero_grad()
        t, xt, ut = self.flow.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        ((self.net(t, xt) - ut) ** 2).mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def sample(self, n: int) -> tuple[Tensor, None]:
        from torchdiffeq import odeint

        self.net.eval()
        ends, x = torch.linspace(0, 1, 2), torch.randn(n, *self.shape)
        return odeint(self.net, x, ends, rtol=1e-4, atol=1e-4, method="dopri5")[-1], None
