"""The interface of denoising-diffusion-pytorch: `from diffusion.compat.lucidrains import *`.

`Trainer` prepares the folder of images and trains as `diffusion fit` does; its results are runs of this project.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion.compat.said import once
from diffusion.data.prepared import Prepared
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import X0, Eps, V
from diffusion.exchange.importing.found import Imported
from diffusion.exchange.importing.run import load
from diffusion.exchange.importing.writing import write
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Clamp
from diffusion.loss.objective import Objective
from diffusion.loss.pairing import Independent, OptimalTransport
from diffusion.loss.weights import L1, MSE, Constant, MinSNR
from diffusion.nets.linear_unet import LinearUNet
from diffusion.noise import Cosine, Linear, SigmoidAlpha
from diffusion.preparing.prepare import prepare
from diffusion.samplers import DDIM, DDPM
from diffusion.support import runs
from diffusion.support.specs import arguments
from diffusion.training.api import fit

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


class Trainer:
    """Training of a `GaussianDiffusion` on a folder of images, by this project's own trainer.

    The images are prepared in results_folder/data: resized to the short side, the middle cut out, nine tenths for
    training. The run is results_folder/run/version_N; `save` copies its newest checkpoint to model-MILESTONE.ckpt,
    which `diffusion sample` opens.

    Args:
        diffusion_model: the model; it has the trained weights, not their average, after `train`.
        folder: of the images, at any depth.
        train_batch_size, gradient_accumulate_every, train_lr, adam_betas, max_grad_norm: of the optimizer.
        train_num_steps: optimizer steps in total.
        ema_decay, ema_update_every: of the average; ours is updated in every step, with the root of the decay.
        augment_horizontal_flip: mirror training images at random.
        save_and_sample_every: steps between two checkpoints, and about as many between two grids of samples.
        num_samples: pictures of a grid.
        results_folder: where everything is written.
        amp: half precision of mixed_precision_type, fp16 or bf16.
        others: further arguments of theirs, which are left out.
    """

    def __init__(
        self,
        diffusion_model: GaussianDiffusion,
        folder: str | Path,
        *,
        train_batch_size: int = 16,
        gradient_accumulate_every: int = 1,
        augment_horizontal_flip: bool = True,
        train_lr: float = 1e-4,
        train_num_steps: int = 100000,
        ema_update_every: int = 10,
        ema_decay: float = 0.995,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        save_and_sample_every: int = 1000,
        num_samples: int = 25,
        results_folder: str | Path = "./results",
        amp: bool = False,
        mixed_precision_type: Literal["fp16", "bf16"] = "fp16",
        max_grad_norm: float = 1.0,
        **others: Any,
    ) -> None:
        if others:
            once(f"diffusion.compat.lucidrains: Trainer leaves out {', '.join(others)}; see `diffusion evaluate RUN`")
        self.model, self.folder, self.results_folder = diffusion_model, Path(folder), Path(results_folder)
        self.batch_size, self.gradient_accumulate_every = train_batch_size, gradient_accumulate_every
        self.flip, self.train_num_steps, self.num_samples = augment_horizontal_flip, train_num_steps, num_samples
        self.lr, self.betas, self.decay = train_lr, tuple(adam_betas), ema_decay ** (1 / ema_update_every)
        self.every, self.clip = save_and_sample_every, max_grad_norm
        self.precision = {"fp16": "16-mixed", "bf16": "bf16-mixed"}[mixed_precision_type] if amp else "32-true"
        self.step, self.run, self.resume = 0, None, None
        self.average: dict[str, Tensor] | None = None
        self.results_folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> None:
        """Train up to train_num_steps; a second call, or one after `load`, continues."""
        H, W = self.model.image_size
        data = self.results_folder / "data"
        if not data.exists():
            prepare(
                self.folder, data, size=(H, W), channels=self.model.channels, label="none", caption="none", enlarge=True
            )  # fmt: skip
        images = len(Prepared(str(data.resolve())).store("train")[0])
        epochs = round(self.every * self.batch_size * self.gradient_accumulate_every / images)
        with tempfile.TemporaryDirectory(dir=self.results_folder, prefix=".start-") as start:
            begun = self.model.write(
                Path(start) / "run", self.average, self.decay, lr=self.lr, betas=self.betas
            )  # fmt: skip
            resume = self.resume or begun / "checkpoints" / "last.ckpt"
            self.run = fit(
                begun / "config.yaml", data=str(data.resolve()), resume=resume,
                out=self.results_folder, experiment="run", max_epochs=-1, max_steps=self.train_num_steps,
                settings={
                    "data.batch_size": min(self.batch_size, images), "data.flip": self.flip, "data.labels": False,
                    "trainer.accumulate_grad_batches": self.gradient_accumulate_every,
                    "trainer.gradient_clip_val": self.clip, "trainer.precision": self.precision,
                    "ema.decay": self.decay, "checkpoint.every_n_steps": self.every,
                    "samples.n": self.num_samples, "samples.every_n_epochs": max(1, epochs),
                },
            )  # fmt: skip
        self.read(runs.find_checkpoint(self.run))

    def read(self, path: Path) -> None:
        """The weights, their average and the step of a checkpoint of ours."""
        found, prefix = runs.read_checkpoint(path), "denoiser.net."
        own = {k.removeprefix(prefix): v for k, v in found["state_dict"].items() if k.startswith(prefix)}
        self.model.model.net.load_state_dict(own)
        shadow = found.get("callbacks", {}).get("EMA", {}).get("shadow")
        self.average = shadow and {k.removeprefix(prefix): v for k, v in shadow.items()}
        self.step, self.resume = found["global_step"], path

    def path(self, milestone: int | str) -> Path:
        """The file of a milestone."""
        return self.results_folder / f"model-{milestone}.ckpt"

    def save(self, milestone: int | str) -> None:
        """Write results_folder/model-MILESTONE.ckpt: the newest checkpoint, or the present weights before training."""
        if self.run is not None:
            shutil.copyfile(runs.find_checkpoint(self.run), self.path(milestone))
            return
        with tempfile.TemporaryDirectory(dir=self.results_folder, prefix=".start-") as folder:
            begun = self.model.write(Path(folder) / "run", self.average, self.decay, lr=self.lr, betas=self.betas)
            (begun / "checkpoints" / "imported.ckpt").replace(self.path(milestone))

    def load(self, milestone: int | str) -> None:
        """Read results_folder/model-MILESTONE.ckpt, or a model-MILESTONE.pt of theirs.

        Raises:
            FileNotFoundError: there is neither.
        """
        theirs = self.path(milestone).with_suffix(".pt")
        if self.path(milestone).is_file() or not theirs.is_file():
            self.read(runs.find_checkpoint(self.path(milestone)))
            return
        found = load(theirs, "lucidrains", {"image_size": self.model.image_size[0]})
        self.model.model.net.load_state_dict(dict(found.weights))
        self.average, self.step = found.average and dict(found.average), found.step
