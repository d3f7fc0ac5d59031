"""A run of ours made of an imported model."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from diffusion import __version__
from diffusion.exchange.importing.found import Imported
from diffusion.loss.objective import Objective
from diffusion.support.files import link
from diffusion.support.seal import seal
from diffusion.support.specs import complete
from diffusion.training.systems.diffusion import Diffusion

LINKED = ("channels", "num_classes", "context_dim", "image_channels")  # of the network, from the data
FACTS = ("shape", "class_names", "seed", "scaling")  # of the model, from the data


def system(model: Imported, **facts: Any) -> Diffusion:
    """The training system of an imported model, with its raw weights.

    Raises:
        ValueError: its parts do not fit together.
    """
    model.net.load_state_dict(dict(model.weights))
    learned = getattr(model.net, "learn_variance", False)
    parts = {"objective": Objective(vlb=0.001) if learned else Objective(), "sampler": model.sampler}
    parts |= {"guidance": model.guidance} | facts
    return Diffusion(model.net, model.schedule, model.target, clamp=model.clamp, shape=model.shape, **parts)


def checkpoint(model: Imported, **facts: Any) -> dict[str, Any]:
    """The contents of a checkpoint, as Lightning and `load_denoiser` read it."""
    made = system(model, **facts)
    state = {name: value.detach().contiguous() for name, value in made.state_dict().items()}
    callbacks = {}
    if model.average is not None:
        shadow = {f"denoiser.net.{name}": value.contiguous() for name, value in model.average.items()}
        callbacks["EMA"] = {"decay": model.decay, "updates": model.step, "shadow": shadow}
    return {
        "state_dict": state,
        "hyper_parameters": dict(made.hparams),
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": "2.6.0",
        "callbacks": callbacks,
        "optimizer_states": [],
        "lr_schedulers": [],
        "imported": {"source": model.source, "steps": model.step, "version": __version__},
    }


def configuration(parts: Mapping[str, Any], data: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run's config.yaml: what `diffusion fit` needs to continue it, without the facts that follow from the data."""
    net = parts["net"]
    own = {k: v for k, v in net["init_args"].items() if k not in LINKED}
    model = {k: v for k, v in parts.items() if k not in FACTS} | {"net": net | {"init_args": own}}
    return {"model": plain(model)} | ({"data": plain(complete(data))} if data else {})


def plain(value: Any) -> Any:
    """Plain data with lists in place of tuples, as YAML has them."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def write(model: Imported, folder: Path, data: Mapping[str, Any] | None = None, **facts: Any) -> Path:
    """Write a run directory: all of it, or nothing.

    Args:
        folder: the run directory; it must not exist, or be empty.
        data: `class_path` and `init_args` of the data set, for `evaluate` and `fit`.
        facts: further arguments of `Diffusion`.
    Raises:
        ValueError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: is not an empty folder; give a new one")
    contents = checkpoint(model, **facts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
    try:
        file = temporary / "checkpoints" / "imported.ckpt"
        file.parent.mkdir()
        torch.save(contents, file)
        seal(file)
        link(file, file.with_name("last.ckpt"))
        written = configuration(contents["hyper_parameters"], data)
        (temporary / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
