"""The interface of denoising-diffusion-pytorch: `from diffusion.compat.lucidrains import *`.

`Trainer` prepares the folder of images and trains as `diffusion fit` does; its results are runs of this project.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion.compat.said import once
from diffusion.compat.trainer import Trainer
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import X0, Eps, V
from diffusion.exchange.importing.found import Imported
from diffusion.exchange.importing.writing import write
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Clamp
from diffusion.loss.objective import Objective
from diffusion.loss.pairing import Independent, OptimalTransport
from diffusion.loss.weights import L1, MSE, Constant, MinSNR
from diffusion.nets.linear_unet import LinearUNet
from diffusion.noise import Cosine, Linear, SigmoidAlpha
from diffusion.samplers import DDIM, DDPM
from diffusion.support.specs import arguments

__all__ = ["GaussianDiffusion", "Trainer", "Unet"]
TARGETS = {"pred_noise": Eps, "pred_x0": X0, "pred_v": V}
SCHEDULES = {"linear": Linear, "cosine": Cosine, "sigmoid": SigmoidAlpha}
DISTANCES = {None: MSE, "l2": MSE, "l1": L1}
BETTER = (
    "diffusion.compat.lucidrains: `diffusion prepare FOLDER --size N --out DATA` and `diffusion fit --data DATA` do "
    "the same and choose batch size, schedule and network; `diffusion sample RUN` samples what this program trains"
)


def one_of(name: str, value: Any, known: dict[Any, Any]) -> Any:
    """The entry of a table for a value.

    Raises:
        ValueError: there is none.
    """
    if value not in known:
        raise ValueError(f"{name}: wanted one of {', '.join(map(str, known))}, got {value!r}")
    return known[value]


class Unet(nn.Module):
    """Our LinearUNet behind the interface of `Unet`: forward(x, time, x_self_cond=None).

    Raises:
        ValueError: an argument that our network does not have, by name.
    """

    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        dropout: float = 0.0,
        attn_dim_head: int = 32,
        attn_heads: int = 4,
        full_attn: tuple[bool, ...] | None = None,
        flash_attn: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        wrong = [*others, *(["init_dim"] if init_dim not in (None, dim) else []), *(["out_dim"] if out_dim else [])]
        if wrong:
            raise ValueError(f"Unet: {', '.join(wrong)} not supported; leave it out")
        full = None if full_attn is None else [level for level, on in enumerate(full_attn) if on]
        self.net = LinearUNet(
            channels, dim, dim_mults, full, attn_heads, attn_dim_head, dropout, "ddpm", self_condition=self_condition
        )
        self.channels, self.self_condition, self.out_dim = channels, self_condition, channels

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """(B, C, H, W) at indices (B,) -> (B, C, H, W)."""
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x) if x_self_cond is None else x_self_cond], dim=1)
        return self.net(x, time)


class GaussianDiffusion(nn.Module):
    """A network, its schedule and its objective; calling it with images in [0, 1] gives the loss.

    Args:
        model: the network.
        image_size: pixels, one number for a square or (height, width).
        timesteps: levels of the schedule.
        sampling_timesteps: steps of DDIM if below timesteps; DDPM with all steps by default.
        loss_type: "l1" or "l2", as in earlier versions.
        objective: what the network predicts: pred_noise, pred_x0 or pred_v.
        beta_schedule: linear, cosine or sigmoid.
        schedule_fn_kwargs: start, end and tau of the sigmoid, s of the cosine.
        ddim_sampling_eta: of DDIM.
        auto_normalize: images are in [0, 1], else in [-1, 1].
        offset_noise_strength: standard deviation of noise shared by the pixels of a channel.
        min_snr_loss_weight: cap the weight of a level at min_snr_gamma.
        immiscible: pair noise with images by optimal transport.
    Raises:
        ValueError: an unknown objective, beta_schedule or loss_type.
    """

    def __init__(
        self,
        model: Unet,
        *,
        image_size: int | tuple[int, int],
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        loss_type: Literal["l1", "l2"] | None = None,
        objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v",
        beta_schedule: Literal["linear", "cosine", "sigmoid"] = "sigmoid",
        schedule_fn_kwargs: dict[str, float] | None = None,
        ddim_sampling_eta: float = 0.0,
        auto_normalize: bool = True,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5.0,
        immiscible: bool = False,
    ) -> None:
        super().__init__()
        H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.model, self.channels, self.image_size = model, model.channels, (H, W)
        self.num_timesteps, self.objective, self.auto_normalize = timesteps, objective, auto_normalize
        schedule = one_of("beta_schedule", beta_schedule, SCHEDULES)(timesteps, **(schedule_fn_kwargs or {}))
        target = one_of("objective", objective, TARGETS)()
        steps = timesteps if sampling_timesteps is None else sampling_timesteps
        if not 1 <= steps <= timesteps:
            raise ValueError(f"sampling_timesteps must lie in 1 .. {timesteps}, got {steps}")
        self.is_ddim_sampling = steps < timesteps
        sampler = DDIM(steps, ddim_sampling_eta) if self.is_ddim_sampling else DDPM(timesteps)
        weight = MinSNR(min_snr_gamma) if min_snr_loss_weight else Constant()
        distance = one_of("loss_type", loss_type, DISTANCES)()
        pairing = OptimalTransport() if immiscible else Independent()
        self.terms = Objective(weight=weight, distance=distance, offset=offset_noise_strength, pairing=pairing)
        denoiser = Denoiser(model.net, schedule, target)
        self.pipeline = Pipeline(denoiser, sampler, clamp=Clamp(), shape=(self.channels, H, W))
        once(BETTER)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def forward(self, img: Tensor) -> Tensor:
        """The loss of images (B, C, H, W) at random levels, a scalar.

        Raises:
            ValueError: images of another size.
        """
        if tuple(img.shape[1:]) != self.pipeline.shape:
            raise ValueError(f"expected images {self.pipeline.shape}, got {tuple(img.shape[1:])}")
        x0 = img * 2 - 1 if self.auto_normalize else img
        return self.terms(self.pipeline.denoiser, x0, self.pipeline.condition(None)).loss

    def sample(self, batch_size: int = 16, return_all_timesteps: bool = False) -> Tensor:
        """Images (B, C, H, W) in [0, 1], or their states (B, steps + 1, C, H, W); the noise is seeded by torch's."""
        seed = int(torch.randint(2**31, ()))
        states = [self.pipeline.start(batch_size, seed)]
        for frame in self.pipeline.frames(batch_size, seed=seed):
            states = [*states, frame.x] if return_all_timesteps else [frame.x]
        x = torch.stack(states, dim=1) if return_all_timesteps else states[-1]
        return (x + 1) / 2 if self.auto_normalize else x

    def write(self, run: Path, average: Mapping[str, Tensor] | None = None, decay: float = 0.995, **facts: Any) -> Path:
        """Make a run of the model; see `exchange.importing.writing.write`."""
        net, parts = self.model.net, self.pipeline
        same = LinearUNet(**{name: getattr(net, name) for name in arguments(LinearUNet)})
        found = Imported(
            "lucidrains", same, net.state_dict(), parts.denoiser.schedule, parts.denoiser.target, parts.sampler,
            parts.clamp, parts.shape, average, decay,
        )  # fmt: skip
        return write(found, run, objective=self.terms, **facts)
