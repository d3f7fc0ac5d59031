"""From a command line to the parts of a training: configuration, data, model and trainer."""

import logging
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from diffusion.data import ImageData
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.hints import Paired
from diffusion.nets.speed import LAYOUTS, MODES
from diffusion.support import runs
from diffusion.support.configurations import located
from diffusion.support.files import atomic
from diffusion.support.paths import CONFIGS
from diffusion.support.scaling import Scaling
from diffusion.support.specs import PACKAGES, build, gather, suggest, today
from diffusion.training import initial, launch
from diffusion.training.callbacks import (
    EMA,
    Checkpoint,
    Diagnostics,
    DurableIO,
    Evaluation,
    Gif,
    Guard,
    PostHoc,
    Reconstructions,
    Samples,
    Watch,
)
from diffusion.training.precision import FASTEST, wanted
from diffusion.training.refusal import explained
from diffusion.training.systems import Autoencoder, Classifier, Diffusion, NoisyClassifier, VICReg
from diffusion.training.systems.latents import hinted

set_loader("yaml", lambda text, load=get_loader("yaml"): today(load(text)), (yaml.YAMLError,))  # older files, too
SYSTEMS = {  # by name: class, default configuration, callbacks configurable by name
    "Diffusion": (Diffusion, "default.yaml", (EMA, PostHoc, Guard, Samples, Gif, Checkpoint, Diagnostics, Evaluation)),
    "Autoencoder": (Autoencoder, "autoencoder.yaml", (EMA, PostHoc, Guard, Reconstructions, Checkpoint)),
    "Classifier": (Classifier, "features.yaml", (Guard, Checkpoint)),
    "NoisyClassifier": (NoisyClassifier, "classifier.yaml", (Guard, Checkpoint)),
    "VICReg": (VICReg, "features.yaml", (Guard, Checkpoint)),
}
BLIND = ("VICReg", "Autoencoder")  # they see no labels
EXTRACTORS = ("Classifier", "VICReg")  # the systems whose runs belong to the metrics' cache
LINKS = {  # properties of the data passed to the model, where the network has such an argument
    "shape": "model.shape",
    "class_names": "model.class_names",
    "channels": "model.net.init_args.channels",
    "num_classes": "model.net.init_args.num_classes",
    "context_dim": "model.net.init_args.context_dim",
    "tokens": "model.net.init_args.tokens",
}


class DiffusionCLI(LightningCLI):
    """A configuration and the parts that it describes, each built on first access.

    Args:
        argv: words of `diffusion fit`.
        judge: (data, features, device) -> the judge of samples of these data, for `Evaluation`.
    """

    def __init__(self, argv: list[str], judge: Callable[[ImageData, str, torch.device], Any] | None = None) -> None:
        for package in PACKAGES:
            gather(f"diffusion.{package}")  # classes are then known by their short names
        self.argv = argv = located(argv)
        self.judge, self.known_codec = judge, None
        self.system = system_of(argv)
        kind, defaults, self.configured = SYSTEMS[self.system]
        super().__init__(
            kind,
            ImageData,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            parser_kwargs={
                "default_config_files": [str(CONFIGS / defaults)],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            trainer_defaults={"use_distributed_sampler": False},
            args=argv,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--system", type=str, default="Diffusion", help=f"one of {', '.join(SYSTEMS)}")
        add("--experiment", type=str, default="", help="folder of the run (default: the data's name)")
        add("--out", type=str, default="", help="folder of the runs (default: lightning_logs)")
        add("--resume", type=str, default="", help="'auto' (the newest run, or a new one), a run, or a checkpoint file")
        add(
            "--init",
            type=str,
            default="",
            help="begin with the weights of a run or file; a resumed run needs it no more",
        )
        add("--init_weights", type=str, default="ema", help="of --init: ema or raw")
        add("--freeze", type=str, default="", help="weights that do not train: names or patterns, e.g. 'inc,downs.*'")
        add("--lr_scale", type=str, default="", help="learning rates of parts, e.g. 'condition=10,ups.*=0.1'")
        add("--budget", type=str, default="", help="total time: 90s, 20m, 1h30m; chooses batch size and steps")
        add("--precision", type=str, default="", help=f"as --trainer.precision, or {FASTEST}: measured here")
        add("--threads", type=str, default="", help=f"of torch on a CPU: a number, or {FASTEST}: measured here")
        add("--compile", type=str, default="", help=f"torch.compile the network: {', '.join(MODES)}")
        add("--layout", type=str, default="", help=f"of the weights: {' or '.join(LAYOUTS)} (default: by precision)")
        add("--recompute", type=bool, default=False, help="gradient checkpointing: less memory, a third more time")
        for kind in (Watch, *self.configured):  # it is called before others do their work
            parser.add_lightning_class_args(kind, kind.__name__.lower())
        for fact, target in LINKS.items():
            if self.system == "Diffusion" and fact == "channels":
                parser.link_arguments("data.channels", target, compute_fn=self.coded, apply_on="instantiate")
                continue
            if self.system in BLIND and fact in ("class_names", "num_classes"):
                continue
            if self.system != "Diffusion" and fact == "tokens":
                continue
            if self.system != "Diffusion" and target.endswith("num_classes"):  # of contexts, too
                parser.link_arguments("data.class_names", target, compute_fn=len, apply_on="instantiate")
            else:
                parser.link_arguments(f"data.{fact}", target, apply_on="instantiate")
        if self.system in ("Diffusion", "Autoencoder"):
            parser.link_arguments("data.scaling", "model.scaling", compute_fn=plain, apply_on="instantiate")
        if self.system == "Diffusion":
            parser.link_arguments("data.paired", "model.paired", apply_on="instantiate")
        image_channels = "model.net.init_args.image_channels"
        facts = ("data.shape", "data.paired")
        parser.link_arguments(facts, image_channels, compute_fn=self.hinted, apply_on="instantiate")
        if Evaluation in self.configured:
            parser.link_arguments("data", "evaluation.judge", compute_fn=self.judged, apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def hinted(self, shape: tuple[int, int, int], paired: dict[str, Any] | None) -> int:
        """Channels of the paired images, or else of the model's hint for images of a shape; with its augmentation's."""
        hint, augment = (self.config.model.get(name) for name in ("hint", "augment"))
        hint = Paired(**paired) if paired else build(hint.as_dict()) if hint else None
        told = build(augment.as_dict()).numbers if augment else 0
        return told + (hinted(hint, self.codec, shape) if hint else 0)

    def coded(self, channels: int) -> int:
        """Channels of what the denoiser works on: the codec's latents, or else images of these channels."""
        return self.codec.latent or channels

    def judged(self, data: ImageData) -> Callable[[str, torch.device], Any] | None:
        """The function that opens the judge of `Evaluation`."""
        return self.judge and partial(self.judge, data)

    def keep_codec(self, known: dict[str, Any] | None) -> None:
        """Build the codec from a checkpoint's description if it is the configured one.

        The weights follow with the checkpoint's, so the autoencoder need not be where it was. Another codec is left as
        it is configured, and is rejected when the models are compared.

        Args:
            known: the codec among the checkpoint's hyper-parameters.
        """
        mine = self.config.model.get("codec")
        if not known or not mine or mine.class_path.rpartition(".")[2] != known["class_path"].rpartition(".")[2]:
            return
        given = {k: v for k, v in mine.init_args.as_dict().items() if v not in (None, "")}
        if all(known["init_args"].get(k) == v for k, v in given.items()):
            self.known_codec = known

    @property
    def codec(self) -> Codec:
        """The codec to train with; `Identity` if none is configured."""
        mine = self.config.model.get("codec")
        known = self.known_codec or (mine.as_dict() if mine else None)
        return build(known) if known else Identity()

    def given(self, option: str) -> bool:
        """Whether an option is on the command line."""
        return any(word.split("=")[0] == f"--{option}" for word in self.argv)

    def instantiate_classes(self) -> None:
        """No-op: parts are built on first access."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with explained(parser, SYSTEMS[self.system][0]):
            super().parse_arguments(parser, args)
        initial.name_teacher(self.config)

    @cached_property
    def config_init(self) -> Namespace:
        """The configuration with objects in it."""
        with explained(self.parser, SYSTEMS[self.system][0]):
            config = self.config
            if self.known_codec:
                config = config.clone()
                config.model.codec = parsed(self.known_codec)
            return self.parser.instantiate(config)

    @property
    def model(self) -> pl.LightningModule:
        """The system to train."""
        return self.config_init.model

    @property
    def datamodule(self) -> ImageData:
        """The data to train on."""
        return self.config_init.data

    @cached_property
    def trainer(self) -> pl.Trainer:
        """A trainer that writes nothing, for validation and inspection.

        It runs on this machine alone, in one process unless more are requested on the command line: the processes and
        machines that are configured, or recorded, are those of a training.
        """
        named = wanted(self.config)
        options = {"precision": named} if named not in ("", FASTEST) else {}
        if not self.given("trainer.strategy"):  # a sharded one needs as many processes as the training had
            options["strategy"] = "auto"
        asked = self.config.trainer.devices if self.given("trainer.devices") else None
        return self._trainer(**launch.here(asked), **options)

    def make_trainer(self, **options: Any) -> pl.Trainer:
        """The configured trainer in all processes of the launcher, with some options of `pl.Trainer` overridden."""
        return self._trainer(**launch.everywhere(self.config.trainer), **options)

    def _trainer(self, plugins: list, **options: Any) -> pl.Trainer:
        return super().instantiate_trainer(plugins=[DurableIO(), *plugins], logger=False, **options)

    def save(self, path: Path) -> None:
        """Write the whole configuration, defaults included."""
        with atomic(path) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_unset=False))


def parsed(value: Any) -> Any:
    """A spec as the parser holds it."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = {k: parsed(v) for k, v in value["init_args"].items()}
        return Namespace(class_path=value["class_path"], init_args=Namespace(**arguments))
    return [parsed(v) for v in value] if isinstance(value, (list, tuple)) else value


def plain(scaling: Scaling) -> dict[str, Any]:
    """A scaling in plain types."""
    return scaling.plain


def system_of(argv: list[str]) -> str:
    """The system named on a command line or in its last configuration file, which determines the options.

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
                continue  # the parser reports the error
            name = read.get("system", name) if isinstance(read, dict) else name
    name = next((v for o, v in zip(words[:-1], words[1:], strict=True) if o == "--system"), name)
    if name not in SYSTEMS:
        near = suggest(str(name), list(SYSTEMS))
        raise ValueError(f"system: there is no {name!r}{near}; there are: {', '.join(SYSTEMS)}")
    return name


def recorded(checkpoint: Path, argv: list[str], codec: dict[str, Any] | None = None) -> DiffusionCLI:
    """The parts of a checkpoint's run, from its own configuration and further options.

    Args:
        codec: among the checkpoint's hyper-parameters, if any; see `DiffusionCLI.keep_codec`.
    Raises:
        FileNotFoundError: the run's configuration is missing.
    """
    config = runs.directory(checkpoint) / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: the run's configuration is missing; it is written beside checkpoints/")
    cli = DiffusionCLI(["-c", str(config), *argv])
    cli.keep_codec(codec)
    return cli


def quiet() -> None:
    """Silence Lightning's announcements and warnings that do not apply to our loaders."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ours = "LightningCLI's args", "Found .* module.* in eval mode", "The number of training batches", ".*LeafSpec"
    for message in ours:
        warnings.filterwarnings("ignore", message)
