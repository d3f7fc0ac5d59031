"""Training diagnostics: the error at each noise level, and advice when something is wrong."""

import math
import warnings
from collections import deque

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.noise.level import Level
from diffusion.training.callbacks import advice
from diffusion.training.callbacks.ema import EMA, whole
from diffusion.training.callbacks.levels import BINS, NAMES, Probe, Ratio, Spectrum, bins, ideal, law, ratio
from diffusion.training.callbacks.pictures import averaged, sharded

SHARE = 200  # a probe of n images runs after n * SHARE trained ones, so it costs about 0.5 %
MOMENTS = 4096  # images for the second moments, and no more than MEMORY / 2 pixels of them
MEMORY = 2**25  # pixels of training images that the ideal denoiser holds: 128 MiB


class Diagnostics(pl.Callback):
    """Log the error by noise level, the gradient norm and how far EMA and raw weights are apart, and give advice.

    Errors are in units of the best linear denoiser of the training images (`Spectrum`), so that they mean the same
    for every target, weight and schedule: 1 is no better than linear. In training they are those of the steps since
    the last log. Some validations also probe a fixed set of training and test images at fixed levels with fixed
    noise, and again with shuffled labels. No training randomness is used. The advice given, the lowest val/loss and
    the steps since the last log are in the checkpoint.

    Args:
        images: images of each split in a probe, >= 0; 0 disables probes and their advice.
    Raises:
        ValueError: images < 0.
    """

    state_key = "Diagnostics"  # of its part of a checkpoint

    def __init__(self, images: int = 200) -> None:
        if images < 0:
            raise ValueError(f"Diagnostics: images must be at least 0, got {images}")
        self.images = images
        self.said: list[str] = []  # kinds of advice given
        self.trained = 0  # images since the last probe
        self.best = (0, float("inf"))  # step and value of the lowest val/loss
        self._window: deque[tuple[Tensor, Tensor]] = deque(maxlen=1000)  # error and log-SNR of each step
        self._spectrum: Spectrum | None = None
        self._probes: tuple[Probe, ...] = ()  # training, validation
        self._began = self._logged = self._probed = -1  # steps
        self._batch_size = 1

    def state_dict(self) -> dict:
        state = {"said": list(self.said), "trained": self.trained, "best": list(self.best)}
        if self._window:
            columns = zip(*((error, *t) for error, t in self._window), strict=True)
            state["window"] = [torch.cat([v.flatten() for v in column]).cpu() for column in columns]
        return state

    def load_state_dict(self, state: dict) -> None:
        self.said, self.trained, self.best = list(state["said"]), state["trained"], tuple(state["best"])
        if "window" in state:
            error, *t = state["window"]
            self._window.append((error, Level(*t)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._window.clear()  # before a checkpoint is restored

    # --- once -------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the data and the levels, and choose the probe images."""
        self._probes, self._probed = (), -1
        self._began = self._logged = trainer.global_step
        data = trainer.datamodule
        if not hasattr(data, "some") or not trainer.is_global_zero or sharded(pl_module):
            return  # foreign loaders have no fixed images; a sharded network is whole on no process
        schedule, pipeline = pl_module.denoiser.schedule, pl_module.pipeline

        def some(split: str, index: Tensor) -> tuple[Tensor, Tensor]:
            if split == "train" and (z := data.encoded_once(index)) is not None:
                return z, data.store(split)[1][index].cpu()
            x, y = data.some(split, index)
            return pipeline.pixels.encode(pipeline.scaling.encode(x.cpu())).cpu(), y.cpu()

        total, unseen = (len(data.store(split)[0]) for split in ("train", "test"))
        fits = MEMORY // math.prod(data.shape)
        self._spectrum = Spectrum(some("train", _evenly(total, min(total, MOMENTS, fits // 2 + 1)))[0])
        self._say(trainer, advice.prior_mismatch(self._spectrum, schedule))
        kinds = getattr(trainer.datamodule, "num_classes", 0) or getattr(trainer.datamodule, "context_dim", 0)
        takes = pl_module.pipeline.num_classes or pl_module.pipeline.context_dim
        self._say(trainer, advice.labels_unused(kinds, takes, pl_module.objective.drop))
        self._say(trainer, advice.never_trained(pl_module.objective.times, schedule, pl_module.pipeline.sampler))
        self._share = law(pl_module.objective.times, schedule)[0]
        if self.images:
            mine = _evenly(total, self.images)
            known = torch.cat([mine, _evenly(total, min(total, fits))]).unique()
            theirs = _evenly(unseen, self.images)
            self._probes = tuple(
                Probe(*some(split, index), schedule, pl_module.seed, self._spectrum)
                for split, index in (("train", mine), ("test", theirs))
            )
            self._hints = [
                pipeline.shown(
                    pipeline.scaling.encode(data.some(split, index)[0].cpu()),
                    range(len(index)),
                    pair=None if (pair := pipeline.pair(data, split, index)) is None else pair.cpu(),
                )
                for split, index in (("train", mine), ("test", theirs))
            ]
            self._known = len(known)
            train, (x, y) = self._probes[0], some("train", known)
            same = None
            if pl_module.pipeline.condition(y).y is not None:  # then the ideal denoiser is conditional too
                label = torch.cat([train.y, y]).unique(dim=0, return_inverse=True)[1]
                same = label[: len(train.y), None] == label[len(train.y) :]
            self._floor = train.score(train.of(ideal(train.x, train.t, x, same)))

    # --- each step --------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        """Keep references to the step's results; read them, which synchronises the device, only when due."""
        self._batch_size = len(batch[0])
        self.trained += len(batch[0]) * trainer.world_size
        if self._spectrum is not None and isinstance(outputs, dict) and "error" in outputs:
            self._window.append((outputs["error"], outputs["level"]))
        step = trainer.global_step
        if step % trainer.log_every_n_steps or step == self._logged or not trainer.is_global_zero:
            return
        self._logged = step
        norm = getattr(trainer.optimizers[0], "norm", None)
        figures = {} if norm is None else {"train/grad_norm": float(norm)}
        if (ema := _ema(trainer)) and ema.shadow:
            figures["train/ema_distance"] = float(distance(ema, pl_module))
        _log(trainer, figures | self._recent())

    def _recent(self) -> dict[str, float]:
        """The mean error of each level since the last log, in units of the linear denoiser's."""
        if not self._window:
            return {}
        error = torch.cat([e.cpu() for e, _ in self._window]).double()
        alpha, sigma = (torch.cat([getattr(t, f).flatten().cpu() for _, t in self._window]) for f in ("alpha", "sigma"))
        self._window.clear()
        log_snr = 2 * (alpha.double().log() - sigma.double().log())
        k, error = bins(log_snr), error / self._spectrum.error(log_snr)
        count = torch.bincount(k, minlength=BINS)
        mean = torch.bincount(k, error, minlength=BINS) / count
        return {f"train_error/{NAMES[b]}": float(mean[b]) for b in range(BINS) if count[b]}

    # --- probes -----------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if (loss := float(trainer.callback_metrics.get("val/loss", float("inf")))) < self.best[1]:
            self.best = (trainer.global_step, loss)
        if self._probes and self.trained >= SHARE * self.images:
            with averaged(trainer, pl_module):
                self.probe(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._probes or trainer.fast_dev_run or trainer.global_step == self._began:
            return
        if self._probed != trainer.global_step:
            with averaged(trainer, pl_module):
                self.probe(trainer, pl_module)
        if ema := _ema(trainer):
            val = self._probes[1]
            raw = self._ask(trainer, pl_module, val, val.y)
            lag = ratio(self._val - raw, raw, val.k)
            self._say(trainer, advice.ema_not_warm(lag, ema.updates, ema.decay))

    def probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the fixed images of both splits with the module's current weights; log, tabulate, advise."""
        step = self._probed = trainer.global_step
        self.trained = 0
        train, val = self._probes
        self._val = self._ask(trainer, pl_module, val, val.y)
        seen = train.score(self._ask(trainer, pl_module, train, train.y))
        unseen = val.score(self._val)
        gap = unseen.over(seen)
        figures = {"val_error/mean": unseen.mean, "gap/mean": gap.mean}
        for group, score in (("val_error", unseen), ("gap", gap)):
            figures |= {f"{group}/{NAMES[k]}": float(v) for k, v in enumerate(score.value) if not v.isnan()}
        self._say(trainer, advice.overfitting(gap, self.best[0], step))
        if pl_module.pipeline.condition(val.y).y is not None and len(val.y.unique(dim=0)) > 1:
            wrong = val.y[torch.randperm(len(val.y), generator=torch.Generator().manual_seed(0))]
            shuffled = self._ask(trainer, pl_module, val, wrong)
            gain = ratio(shuffled - self._val, self._val, val.k)
            figures["labels/gain"] = gain.mean
            self._say(trainer, advice.labels_ignored(gain, unseen))
        _log(trainer, figures)
        _text(trainer, "levels", self.table(seen, unseen, gap))

    def _ask(self, trainer: pl.Trainer, pl_module: pl.LightningModule, probe: Probe, y: Tensor) -> Tensor:
        training = pl_module.training
        pl_module.eval()
        try:
            with trainer.precision_plugin.forward_context():
                image = self._hints[self._probes.index(probe)]
                y = pl_module.pipeline.condition(y).y
                return probe.errors(pl_module.denoiser, y, pl_module.device, max(self._batch_size, 32), image)
        finally:
            pl_module.train(training)

    def table(self, seen: Ratio, unseen: Ratio, gap: Ratio) -> str:
        """A Markdown table of the levels, the noisiest first."""
        rows = [
            "error in units of the best linear denoiser's; 1 is no better, the floor is ideal on training images",
            "",
            f"| level | share of training | training | validation | gap | floor ({self._known:,} images) |",
            "|---|---|---|---|---|---|",
        ]
        for k in range(BINS):
            if not seen.value[k].isnan() and not unseen.value[k].isnan():
                cells = (seen.value[k], unseen.value[k], self._floor.value[k])
                a, b, floor = (f"{float(v):.3f}" for v in cells)
                shift = f"{float(gap.value[k]):+.0%} ± {float(gap.error[k]):.0%}"
                rows.append(f"| {NAMES[k]} | {100 * float(self._share[k]):.2g}% | {a} | {b} | {shift} | {floor} |")
        return "\n".join(rows)

    def _say(self, trainer: pl.Trainer, text: str | None) -> None:
        """Give advice on the console and in TensorBoard, each kind once per run."""
        if text is None or (kind := text.partition(":")[0]) in self.said:
            return
        self.said.append(kind)
        # Located by the step, since a line of this file would be meaningless to the reader.
        warnings.warn_explicit(text, advice.Advice, "step", trainer.global_step, registry={})
        _text(trainer, "advice", text)


def distance(ema: EMA, pl_module: pl.LightningModule) -> Tensor:
    """|EMA - raw| / |raw| over all weights."""
    weights = dict(pl_module.named_parameters())
    raw = [weights[k].detach().float() for k in ema.shadow]
    away = torch._foreach_norm(torch._foreach_sub(list(ema.shadow.values()), raw))
    return whole(torch.stack(away).norm() / torch.stack(torch._foreach_norm(raw)).norm())


def _ema(trainer: pl.Trainer) -> EMA | None:
    return next((c for c in trainer.callbacks if isinstance(c, EMA)), None)


def _evenly(total: int, n: int) -> Tensor:
    """n of `total` indices, evenly spread; repeated if there are fewer than n."""
    return torch.linspace(0, total - 1, n).round().long()


def _log(trainer: pl.Trainer, figures: dict[str, float]) -> None:
    for logger in trainer.loggers if figures else ():
        logger.log_metrics(figures, trainer.global_step)


def _text(trainer: pl.Trainer, name: str, text: str) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, pl.loggers.TensorBoardLogger):
            logger.experiment.add_text(f"diagnostics/{name}", text, trainer.global_step)
