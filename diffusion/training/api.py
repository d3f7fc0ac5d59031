"""Training from Python: `diffusion.fit` and `diffusion.validate`, with the options of the command line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffusion.nets.speed import LAYOUTS
from diffusion.support import runs
from diffusion.support.configurations import configuration
from diffusion.training.build import quiet, recorded
from diffusion.training.report import speed
from diffusion.training.run import train
from diffusion.training.systems import Diffusion

Config = str | Path


def fit(
    config: Config | Sequence[Config] = (),
    *,
    data: str | Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    budget: str | None = None,
    precision: str | None = None,
    threads: int | str | None = None,
    seed: int | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    experiment: str | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Train a model as `diffusion fit` does, and return the run's directory.

        run = diffusion.fit("configs/digits.yaml", max_epochs=20, settings={"model.lr": 1e-3})

    Signal handlers are restored on return; none are installed in a thread.

    Args:
        config: configuration files, later ones overriding earlier ones; names of files that are not here are looked up
            among the package's.
        data: the name of a data set, or its `class_path` and `init_args`.
        max_epochs: passes over the training images; -1 for no limit.
        max_steps: optimizer steps; training ends at whichever limit comes first.
        budget: total time, "90s", "20m" or "1h30m"; chooses batch size and steps.
        precision: "32-true", "bf16-mixed", any other name that Lightning knows, or "fastest", which measures. By
            default it depends on the capabilities of the device.
        threads: of torch on a CPU: a number, or "fastest", which measures. It is torch's own again on return.
        seed: of weights, data order, noise and previews.
        resume: "auto" for the newest run of the experiment, or a new one; a run; or a checkpoint file.
        init: a run or file whose weights a new run begins with; matching tensors are taken, others are named in the
            output. "freeze" and "lr_scale" in `settings` choose the parts that train.
        experiment: the folder of the run (default: the data's name).
        out: the folder of the runs (default: lightning_logs).
        settings: any other options of `diffusion fit` by their dotted names, e.g. {"model.net.width": 32}.
    Raises:
        ValueError: an invalid configuration, explained in one line.
        FileNotFoundError: no such configuration, run or checkpoint.
        OSError: the run's folder is not writable.
        FloatingPointError: training has diverged.
        KeyboardInterrupt: Ctrl-C; the newest checkpoint is saved.
    """
    options = {
        "data": data,
        "trainer.max_epochs": max_epochs,
        "trainer.max_steps": max_steps,
        "budget": budget,
        "precision": precision,
        "threads": threads,
        "seed_everything": seed,
        "resume": resume,
        "init": init,
        "experiment": experiment,
        "out": out,
    }
    files = [config] if isinstance(config, (str, Path)) else config
    given = {k: v for k, v in options.items() if v is not None} | dict(settings or {})
    argv = [w for file in files for w in ("-c", str(configuration(file)))] + words(given)
    run = train(argv, final=False)
    if run.trainer.is_global_zero:
        print(speed(run.trainer), end="")
    return run.folder


def validate(
    run: str | Path, weights: Literal["ema", "raw"] = "ema", settings: Mapping[str, Any] | None = None
) -> float:
    """val/loss of a run on the test split of its own data: evenly spread times and fixed noise.

    Args:
        run: run directory, experiment folder, or checkpoint file.
        weights: averaged or raw.
        settings: options of `diffusion fit` that override its configuration, by their dotted names.
    Raises:
        FileNotFoundError: no such run, or its configuration is missing.
        ValueError: not a run of a diffusion model, or an invalid option.
    """
    return validated(runs.find_checkpoint(run), weights, settings or {})[0]


def validated(path: Path, weights: Literal["ema", "raw"], settings: Mapping[str, Any]) -> tuple[float, int]:
    """val/loss of a checkpoint file and the number of images; see `validate`."""
    quiet()
    model = Diffusion.load(path, weights)
    cli = recorded(path, words(settings), model.hparams.get("codec"))
    if layout := cli.config.layout:  # as it was trained: in bf16 the sums of another layout differ
        model.denoiser.net.to(memory_format=LAYOUTS[layout])
    loss = cli.trainer.validate(model, cli.datamodule, verbose=False)[0]["val/loss"]
    return loss, len(cli.datamodule.store("test")[0])


def words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line options of `diffusion fit`."""
    return [f"--{name}={value if isinstance(value, (str, Path)) else json.dumps(value)}" for name, value in
            settings.items()]  # fmt: skip
