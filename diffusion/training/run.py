"""The lifecycle of a run, from command-line words to a trained model in a run directory."""

import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from diffusion.data import ImageData
from diffusion.judging.judge import open_evaluator, open_extractor
from diffusion.metrics.evaluator import Evaluator
from diffusion.nets import speed, threads
from diffusion.support import runs
from diffusion.support.console import clock, in_notebook, shown
from diffusion.support.paths import cache_root, run_root
from diffusion.support.signals import Interrupted, Listener, Stopped, listening
from diffusion.training import initial, launch, pace, precision, report
from diffusion.training.build import EXTRACTORS, DiffusionCLI, quiet
from diffusion.training.callbacks import Budget, Crowd, Lines, Ranks, Rate, Signals
from diffusion.training.callbacks.budget import seconds
from diffusion.training.callbacks.progress import Live
from diffusion.training.compare import differences, hparams_of
from diffusion.training.extractor_of import judge, train_extractor
from diffusion.training.resume import CONFIG, Start, claim, clear, place, restored
from diffusion.training.suited import suited


@dataclass(frozen=True)
class Run:
    """A training run, ready to start or finished.

    Attributes:
        cli: its configuration.
        model, data, trainer: its parts.
        experiment: the folder that holds this run and others.
        start: its own folder, and the checkpoint that it resumes from.
        why: the reason for the precision, or "".
        taken: the weights that a new run begins with, if they are those of another.
        counted: what was measured to choose the number of threads, or "".
    """

    cli: DiffusionCLI
    model: pl.LightningModule
    data: ImageData
    trainer: pl.Trainer
    experiment: Path
    start: Start
    why: str = ""
    taken: initial.Taken | None = None
    counted: str = ""

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.start.folder

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files."""
        return self.trainer.is_global_zero and not self.trainer.fast_dev_run


def assemble(argv: list[str], listener: Listener | None = None, started: float | None = None) -> Run:
    """The parts of a training run and its destination; writes nothing.

    Args:
        argv: words of `diffusion fit`.
        listener: receives the signals; see `Signals`.
        started: when the time of a budget begins, on `time.perf_counter`'s clock; now by default.
    """
    started = time.perf_counter() if started is None else started
    cli = DiffusionCLI(suited(argv), open_judge)
    config = cli.config
    root = run_root(config.out) if config.out or cli.system not in EXTRACTORS else cache_root() / "features"
    experiment = root / (config.experiment or config.data.class_path.rpartition(".")[2].lower())
    start = launch.looked(partial(place, experiment, config.resume, launch.first()))
    try:
        return built(cli, start, experiment, listener, started)
    except BaseException:
        if start.lock:
            start.lock.release()
        raise


def built(cli: DiffusionCLI, start: Start, experiment: Path, listener: Listener | None, started: float) -> Run:
    """The parts of a run that starts in a known place; see `assemble`."""
    config, diffusion = cli.config, cli.system == "Diffusion"
    if diffusion and start.resume:
        cli.keep_codec(start.resume.checkpoint["hyper_parameters"].get("codec"))
    if config.budget:
        pace.unlimited(config, cli.system)
    model, data, device = cli.model, cli.datamodule, precision.device_of(config.trainer)
    alone = launch.alone(config.trainer)
    net = (model.denoiser if diffusion else model).net
    taken = None
    if config.init and start.resume is None:
        taken = initial.take(model, config.init, config.init_weights)
    initial.freeze(model, config.freeze)
    model.lr_scales = initial.scaled(model, config.lr_scale)
    if config.recompute:
        speed.recomputed(net)
    threads.preset(config.threads)

    def measure(choices: list[precision.Choice]) -> precision.Choice:
        if not alone or not diffusion:  # several processes would measure different times
            return choices[0]._replace(reason="not measured: requires a single process and a diffusion model")
        return precision.measured(net, partial(pace.loss_of, model), data.batch_size, device, choices)

    nodes = launch.count(config.trainer)["num_nodes"]
    chosen = precision.choose(config, start.recorded, device, measure, conv=diffusion, nodes=nodes)
    config.trainer.precision, config.layout, config.precision = chosen.precision, chosen.layout, ""
    net.to(memory_format=speed.LAYOUTS[chosen.layout])
    free = alone and diffusion
    counted = precision.threaded(config.threads, partial(pace.loss_of, model), data.batch_size, device, chosen, free)
    config.threads = ""  # of this machine, not of the run
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for float32 products
    callbacks: list[pl.Callback] = [Ranks(), Signals(listener), Crowd()]
    if config.budget:
        free = alone and not cli.given("data.batch_size")
        found = pace.choose(config, model, device, start.recorded, free)
        found.apply(config, data, model)
        callbacks.append(Budget(seconds(config.budget), found.step, started))
    if config.compile:
        speed.compiled(net, config.compile)
    return Run(cli, model, data, trainer_of(cli, callbacks), experiment, start, chosen.reason, taken, counted)


def trainer_of(cli: DiffusionCLI, first: list[pl.Callback]) -> pl.Trainer:
    """The trainer of a run, with the callbacks that every run has besides the configured ones.

    Args:
        first: those that come before the configured ones.
    """
    bar = cli.config.trainer.enable_progress_bar
    bar = sys.stdout.isatty() if bar is None else bar
    trainer = cli.make_trainer(precision=cli.config.trainer.precision, enable_progress_bar=bar)
    # Callbacks that display the others' results come last, after Lightning's checkpoints.
    last = [Rate(), *([] if bar else [Live() if in_notebook() else Lines()])]
    trainer.callbacks[:] = [*first, *trainer.callbacks, *last]
    return trainer


@threads.threads_restored()
def train(argv: list[str], final: bool = True, started: float | None = None) -> Run:
    """Train as the words of `diffusion fit` say.

    Args:
        final: whether to print the files written and the next commands at the end.
        started: when the time of a budget begins, on `time.perf_counter`'s clock; now by default.
    Raises:
        Interrupted: Ctrl-C.
        Stopped: another signal.
        ValueError, OSError: an invalid configuration, an unwritable folder, or missing data.
        FloatingPointError: training has diverged.
    """
    quiet()
    folder = None
    with listening() as listener:
        try:
            run = assemble(argv, listener, started)
            listener.wait()
            run = begin(run)
            folder = run.folder if run.trainer.is_global_zero else None
            try:
                live(run, argv, listener, final)
            finally:
                if run.start.lock:
                    run.start.lock.release()
            listener.release()
        except Stopped as stop:
            if launch.launched():  # Lightning kills the first process when another ends with any code but 0
                raise SystemExit(0) from None
            if stop.signum == signal.SIGINT:
                raise Interrupted(folder) from None  # expected by notebooks and callers
            raise Stopped(stop.signum, stop.validating, folder) from None
    return run


def begin(run: Run) -> Run:
    """The run in its folder, the same on all processes, with its logger; writes its configuration there."""
    trainer, start, made = run.trainer, run.start, []
    try:
        start = launch.compared(trainer, run.model, start)  # before anything is written
        if run.writes:
            above = [p for p in (run.experiment, run.experiment.parent) if not p.exists()]
            try:
                start = claim(run.experiment, start)
            except OSError as error:
                start = start._replace(failed=error)
            made = [start.folder, *above] if start.folder and run.start.folder is None else []
        elif start.folder is None:
            start = start._replace(folder=run.experiment / f"version_{runs.next_version(run.experiment)}")
        run = replace(run, start=launch.agreed(trainer, run.model, start))
        trainer.logger = False if trainer.fast_dev_run else curves(run)
        resume, changes = run.start.resume, []
        if resume:
            before = runs.directory(resume.path)
            changes = differences(resume, hparams_of(run.model), before, run.cli.config)
        if trainer.is_global_zero:
            print(report.begins(run.model, trainer, run.data, run.folder, run.why))
            for said in filter(None, (run.counted, run.taken)):
                print(said, flush=True)
            for keeper in (c for c in trainer.callbacks if isinstance(c, Budget)):
                print(
                    f"budget {clock(keeper.total)}: batch {run.data.batch_size}, lr {run.model.lr:.2g}, "
                    f"{keeper.step:.2g} s per step initially"
                )
            if resume:
                print("\n".join([restored(resume), *(f"changed: {line}" for line in changes)]), flush=True)
        judge(trainer, run.data, run.writes)
        if run.writes:
            clear(run.folder, resume)
            run.cli.save(run.folder / CONFIG)  # now, so that the next start finds the automatic choices
    except BaseException:
        if start.lock:
            start.lock.release()
        remove(made)
        raise
    return run


def curves(run: Run) -> TensorBoardLogger:
    """The run's TensorBoard logger."""
    resume = run.start.resume
    return TensorBoardLogger(
        run.folder.parent.parent,
        name=run.folder.parent.name,
        version=run.folder.name,
        default_hp_metric=False,
        # Steps after the checkpoint are repeated; checkpoints older than `runs.rewind` only hide their curves.
        purge_step=resume.step if resume and resume.checkpoint["logs"] is None else None,
    )


def live(run: Run, argv: list[str], listener: Listener, final: bool = True) -> None:
    """Train, and report how training ended.

    Raises:
        Stopped: a signal arrived; the state has been saved.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    trainer, folder, resume = run.trainer, run.folder, run.start.resume
    try:
        if trainer.world_size == 1:
            with listener.acting():  # a signal interrupts a download at once
                run.data.prepare_data()
        trainer.fit(run.model, run.data, ckpt_path=resume and resume.path, weights_only=True)
    except Stopped:
        if trainer.is_global_zero:
            step = runs.newest_step(folder)
            newest = "no checkpoint yet" if step is None else f"newest checkpoint: step {step:,}"
            print(f"stopped at step {trainer.global_step:,}; {newest}", flush=True)
            if not in_notebook():
                report.hints(folder, argv, trainer)
        raise
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        raise Interrupted(folder) from None
    except Exception as error:
        gone = not folder.exists() or trainer.global_step and not (folder / CONFIG).exists()
        if run.writes and gone:  # whichever call noticed first
            said = f"{folder}: the run's folder was removed during training"
            if runs.checkpoints(folder):
                said += f"; its last state was saved there again, continue with --resume {shown(folder)}"
            raise FileNotFoundError(said) from error
        told = runs.checkpoints(folder) or list(folder.glob("nonfinite-*.json"))
        if run.writes and not told:  # it failed before the first checkpoint
            remove([folder, run.experiment, run.experiment.parent])
        raise
    if run.writes and resume and trainer.global_step == resume.step:
        more = "--budget" if run.cli.config.budget else "--trainer.max_epochs or max_steps"
        print(f"this run is complete, nothing left to train; raise {more} to continue")
    elif run.writes and final:
        report.hints(folder, argv, trainer)


def remove(made: list[Path]) -> None:
    """Remove the folder of a run that failed early, and its parents if they are empty."""
    for k, folder in enumerate(made):
        if not k:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def open_judge(data: ImageData, features: str, device: torch.device) -> Evaluator:
    """The judge of samples of a data set; its extractor is trained first if missing."""
    return open_evaluator(data, open_extractor(data, features, device, train=partial(train_extractor, fit=train)))
