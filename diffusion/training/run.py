"""Train a model from configuration files, into a run directory, from scratch or resumed."""

import logging
import shlex
import shutil
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import yaml
from jsonargparse import get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from diffusion.data import ImageData
from diffusion.judging.judge import folder, open_evaluator, open_extractor
from diffusion.nets.speed import LAYOUTS, MODES
from diffusion.support import runs
from diffusion.support.console import board, clock, in_notebook, shown, tool
from diffusion.support.paths import REPO, cache_root, run_root
from diffusion.support.specs import build, gather, suggest, today
from diffusion.training import launch, pace
from diffusion.training.callbacks import (
    EMA,
    Budget,
    Checkpoint,
    Diagnostics,
    DurableIO,
    Evaluation,
    Gif,
    Guard,
    Lines,
    Ranks,
    Rate,
    Samples,
    Signals,
)
from diffusion.training.callbacks.progress import Live
from diffusion.training.callbacks.signals import Stopped
from diffusion.training.classifier_of import train_classifier
from diffusion.training.resume import clear, differences, hparams_of, place, restored
from diffusion.training.systems import Classifier, Diffusion, NoisyClassifier

set_loader("yaml", lambda text, load=get_loader("yaml"): today(load(text)), (yaml.YAMLError,))  # older files, too
SYSTEMS = {  # what is trained: the class, its defaults, the callbacks that are configured by their names
    "Diffusion": (Diffusion, "default.yaml", (EMA, Guard, Samples, Gif, Checkpoint, Diagnostics, Evaluation)),
    "Classifier": (Classifier, "features.yaml", (Guard, Checkpoint)),
    "NoisyClassifier": (NoisyClassifier, "classifier.yaml", (Guard, Checkpoint)),
}
LINKS = {  # facts of the data that the model is built from; a network that has no such argument is left alone
    "shape": "model.shape",
    "class_names": "model.class_names",
    "channels": "model.net.init_args.channels",
    "num_classes": "model.net.init_args.num_classes",
    "context_dim": "model.net.init_args.context_dim",
}


class DiffusionCLI(LightningCLI):
    """LightningCLI with our links, run directories and resuming; builds everything, runs nothing."""

    def __init__(self, argv: list[str], training: bool = True, started: float | None = None) -> None:
        for package in ("data", "nets", "noise", "samplers", "guidance"):
            gather(f"diffusion.{package}")  # classes are then known by their short names
        self.training, self.argv = training, argv
        self.started = time.perf_counter() if started is None else started
        self.system = system_of(argv)
        kind, defaults, self.configured = SYSTEMS[self.system]
        super().__init__(
            kind,
            ImageData,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfigCallback if training else None,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "default_config_files": [str(REPO / "configs" / defaults)],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            trainer_defaults={"use_distributed_sampler": False},
            args=argv,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--system", type=str, default="Diffusion", help=f"one of {', '.join(SYSTEMS)}")
        parser.add_argument("--experiment", type=str, default="", help="folder of the run (default: the data's name)")
        parser.add_argument("--out", type=str, default="", help="folder of the runs (default: lightning_logs)")
        parser.add_argument(
            "--resume", type=str, default="", help="'auto' (the newest run, or a new one), a run, or a checkpoint file"
        )
        add = parser.add_argument
        add("--budget", type=str, default="", help="90s, 20m, 1h30m: when all has to be done; chooses batch and steps")
        add("--compile", type=str, default="", help=f"torch.compile the network: {', '.join(MODES)}")
        add("--layout", type=str, default="", help=f"of the weights: {' or '.join(LAYOUTS)} (default: the faster)")
        add("--recompute", type=bool, default=False, help="gradient checkpointing: less memory, a third more time")
        for kind in self.configured:
            parser.add_lightning_class_args(kind, kind.__name__.lower())
        for fact, target in LINKS.items():
            if self.system != "Diffusion" and target.endswith("num_classes"):  # of contexts, too
                parser.link_arguments("data.class_names", target, compute_fn=len, apply_on="instantiate")
            else:
                parser.link_arguments(f"data.{fact}", target, apply_on="instantiate")
        image_channels = "model.net.init_args.image_channels"
        parser.link_arguments("data.shape", image_channels, compute_fn=self.hinted, apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def hinted(self, shape: tuple[int, int, int]) -> int:
        """Channels of the image that the model's hint makes of images of a shape; 0 without a hint."""
        hint = self.config.model.get("hint")
        return build(hint.as_dict()).shape(shape)[0] if hint else 0

    def given(self, option: str) -> bool:
        """Was this option given on the command line?"""
        return any(word.split("=")[0] == f"--{option}" for word in self.argv)

    def before_instantiate_classes(self) -> None:
        config = self.config
        launch.count(config.trainer)
        name = config.experiment or config.data.class_path.rpartition(".")[2].lower()
        self.directory, self.resume = None, None
        if self.training:
            root = run_root(config.out) if config.out or self.system != "Classifier" else cache_root() / "features"
            self.directory, self.resume = place(root / name, config.resume)
            if config.budget:
                pace.unlimited(self)

    def instantiate_trainer(self, **kwargs) -> pl.Trainer:
        kwargs["plugins"], kwargs["logger"] = [DurableIO(), *launch.plugins()], False
        if self.training:
            if self._get(self.config_init, "trainer.enable_progress_bar") is None:
                kwargs["enable_progress_bar"] = sys.stdout.isatty()
            kwargs["precision"] = pace.settle(self)
        trainer = super().instantiate_trainer(**kwargs)
        if self.training:
            self.directory, self.resume = launch.agreed(trainer, self.model, self.directory, self.resume)
            trainer.logger = False if trainer.fast_dev_run else self.log()
            trainer.callbacks[:0] = [Ranks(), Signals(), Rate(), *self.budget]
            if not kwargs.get("enable_progress_bar", True):
                trainer.callbacks.append(Live() if in_notebook() else Lines())  # last: it shows what the others made
        return trainer

    def log(self) -> TensorBoardLogger:
        """The run's curves."""
        return TensorBoardLogger(
            self.directory.parent.parent,
            name=self.directory.parent.name,
            version=self.directory.name,
            default_hp_metric=False,
            # Steps after the checkpoint are done again: files from before `runs.rewind` hide their curves at least.
            purge_step=self.resume.step if self.resume and self.resume.checkpoint["logs"] is None else None,
        )


def system_of(argv: list[str]) -> str:
    """The system that a command line or its last configuration file names: it decides what the options are.

    Raises:
        ValueError: there is no such system.
    """
    words = [w for word in argv for w in (word.split("=", 1) if word.startswith("-") else [word])]
    name = "Diffusion"
    for option, value in zip(words[:-1], words[1:], strict=True):
        if option in ("-c", "--config") and Path(value).is_file():
            try:
                read = yaml.safe_load(Path(value).read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # the parser says what is wrong with it
            name = read.get("system", name) if isinstance(read, dict) else name
    name = next((v for o, v in zip(words[:-1], words[1:], strict=True) if o == "--system"), name)
    if name not in SYSTEMS:
        near = suggest(str(name), list(SYSTEMS))
        raise ValueError(f"system: there is no {name!r}{near}; there are: {', '.join(SYSTEMS)}")
    return name


def recorded(checkpoint: Path, argv: list[str]) -> DiffusionCLI:
    """The parts of the run that a checkpoint lies in, built from its own configuration and further options.

    Raises:
        FileNotFoundError: the run's configuration is missing.
    """
    config = runs.directory(checkpoint) / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: the run's configuration is missing; it is written beside checkpoints/")
    return DiffusionCLI(["-c", str(config), *argv], training=False)


def quiet() -> None:
    """Keep Lightning's announcements and the warnings that do not apply to our loaders off the screen."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in ("LightningCLI's args", "The number of training batches", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message)


def fit(argv: list[str], final: bool = True, started: float | None = None) -> tuple[DiffusionCLI, Path]:
    """Train as the arguments say; returns the parts and the run directory.

    Args:
        final: end with what was written and the next commands.
        started: when the time of a budget begins, on `time.perf_counter`'s clock; now by default.
    """
    quiet()
    cli = DiffusionCLI(argv, started=started)
    trainer, model, directory = cli.trainer, cli.model, cli.directory
    made = [p for p in (directory.parent, directory.parent.parent) if not p.exists()]
    if trainer.is_global_zero and not trainer.fast_dev_run:
        writable(directory)
    params = sum(p.numel() for p in model.parameters())
    if trainer.is_global_zero:
        print(
            f"{type(getattr(model, 'denoiser', model).net).__name__} ({params:,} parameters) on "
            f"{type(cli.datamodule).__name__}, {trainer.strategy.root_device}, precision {trainer.precision}{cli.why}; "
            f"run: {shown(directory)}"
        )
    if cli.budget and trainer.is_global_zero:
        keeper = cli.budget[0]
        print(
            f"budget {clock(keeper.total)}: batch {cli.datamodule.batch_size}, lr {model.lr:.2g}, "
            f"{keeper.step:.2g} s a step as it begins"
        )
    if cli.resume:
        run = runs.directory(cli.resume.path)
        changes = differences(cli.resume, hparams_of(model), run, cli.config)
        if trainer.is_global_zero:
            print("\n".join([restored(cli.resume), *(f"changed: {line}" for line in changes)]))
    prepare(cli)
    if trainer.is_global_zero and not trainer.fast_dev_run:
        clear(directory, cli.resume)
    try:
        trainer.fit(model, cli.datamodule, ckpt_path=cli.resume and cli.resume.path, weights_only=True)
    except Stopped as stop:
        if trainer.is_global_zero:
            stop.run = directory
            step = runs.newest_step(directory)
            print(
                f"stopped at step {trainer.global_step:,}; "
                + ("no checkpoint yet" if step is None else f"the newest checkpoint is of step {step:,}"),
                flush=True,
            )
            if not in_notebook():
                hints(directory, argv, trainer)
        if launch.launched():  # Lightning kills the first process when another ends with any code but 0
            raise SystemExit(0) from None
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt from None  # what a notebook and a caller expect
        raise
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        raise KeyboardInterrupt from None
    except Exception as error:
        gone = not directory.exists() or trainer.global_step and not (directory / "config.yaml").exists()
        if isinstance(error, OSError) and trainer.is_global_zero and gone:
            said = f"{directory}: the run's folder was removed while it trained"
            if runs.checkpoints(directory):
                said += f"; its last state was saved there once more, go on with --resume {shown(directory)}"
            raise FileNotFoundError(said) from error
        told = runs.checkpoints(directory) or list(directory.glob("nonfinite-*.json"))
        if trainer.is_global_zero and not told and not trainer.fast_dev_run:  # it never got anywhere: leave nothing
            shutil.rmtree(directory, ignore_errors=True)
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    if trainer.is_global_zero and not trainer.fast_dev_run:
        if cli.resume and trainer.global_step == cli.resume.step:
            more = "--budget" if cli.budget else "--trainer.max_epochs or max_steps"
            print(f"this run is complete, nothing left to train; raise {more} to go on")
        elif final:
            hints(directory, argv, trainer)
    return cli, directory


def prepare(cli: DiffusionCLI) -> None:
    """What the evaluation callback judges with, if it is on; its classifier is trained first where there is none."""
    evaluation = next((c for c in cli.trainer.callbacks if isinstance(c, Evaluation)), None)
    if evaluation and evaluation.every_n_epochs and evaluation.features == "auto" and cli.trainer.world_size > 1:
        if not runs.versions(folder(cli.datamodule)):
            name = type(cli.datamodule).__name__
            raise ValueError(
                f"there is no classifier of {name} to judge samples with; train it in one process first: "
                f"{tool('diffusion')} fit -c configs/features_{name.lower()}.yaml"
            )
    if evaluation and evaluation.every_n_epochs and cli.trainer.is_global_zero and not cli.trainer.fast_dev_run:
        cli.datamodule.prepare_data()
        where = cli.trainer.strategy.root_device
        extractor = open_extractor(cli.datamodule, evaluation.features, where, train=partial(train_classifier, fit=fit))
        evaluation.evaluator = open_evaluator(cli.datamodule, extractor)


def writable(directory: Path) -> None:
    """Make the run's folder now, so that a place that cannot be written is found before training."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"{directory}: the run's folder cannot be written ({error.strerror}); choose another with --out"
        raise type(error)(message) from error


def hints(directory: Path, argv: list[str], trainer: pl.Trainer) -> None:
    """What was written, and the exact commands to go on."""
    if not runs.checkpoints(directory):
        return
    rate = next((c for c in trainer.callbacks if isinstance(c, Rate)), None)
    if rate and rate.images:
        print(f"{trainer.global_step:,} steps, {rate.per_second:,.0f} images/s, {clock(rate.seconds)} of training")
    for keeper in (c for c in trainer.callbacks if isinstance(c, Budget)):
        print(f"budget {clock(keeper.total)}, spent {clock(keeper.spent)}")
    run = shown(directory)
    files = [str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if p.is_file()]
    print(f"files in {run}/: {', '.join(files[:12])}{' ...' if files[12:] else ''}")
    arguments = [a for i, a in enumerate(argv) if a != "--resume" and (i == 0 or argv[i - 1] != "--resume")]
    arguments = [a for a in arguments if not a.startswith("--resume=")]
    diffusion = tool("diffusion")
    if not isinstance(trainer.lightning_module, Diffusion):
        noisy = isinstance(trainer.lightning_module, NoisyClassifier)
        if "val/accuracy" in trainer.callback_metrics:
            share = float(trainer.callback_metrics["val/accuracy"])
            print(f"right on {share:.2%} of the test images" + (", mean over noise levels" if noisy else ""))
        use = f"sample RUN --classifier {run} --scale 3" if noisy else f"evaluate RUN --features {run}"
        print(f"next:\n  {diffusion} {use}")
        return
    print("next:")
    image = " --image test" if getattr(trainer.lightning_module, "hint", None) else ""
    print(f"  {diffusion} sample {run}{image} --n 64 --out grid.png")
    print(f"  {diffusion} evaluate {run}")
    print(f"  {diffusion} film {run}{image} --out denoising.gif")
    print(f"  {board(run)}")
    print(f"  {diffusion} fit {shlex.join(arguments)} --resume {run}")
