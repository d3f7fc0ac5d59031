"""The Trainer of the interface `compat.lucidrains`, on this project's own training."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from diffusion.compat.said import once
from diffusion.data.prepared import Prepared
from diffusion.exchange.importing.run import load
from diffusion.preparing.prepare import prepare
from diffusion.support import runs
from diffusion.training.api import fit

if TYPE_CHECKING:
    from diffusion.compat.lucidrains import GaussianDiffusion


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
