"""A SageMaker training job: its hyperparameters become a `diffusion fit` that resumes where the last one stopped.

    python -m diffusion.sagemaker --config mnist.yaml --epochs 10 --model.lr 1e-4

A job's entry point is docs/sagemaker/train.py, which calls this module; see docs/sagemaker.md.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from diffusion.support import signals
from diffusion.support.configurations import configuration
from diffusion.support.paths import run_root

SHORT = {"epochs": "trainer.max_epochs", "batch_size": "data.batch_size", "lr": "model.lr"}


def main(argv: list[str] | None = None) -> int:
    """Run the training job; returns 0 if it completed, 143 if it was stopped, 1 if it failed.

    When completed or stopped, $SM_MODEL_DIR has the newest checkpoint and its configuration, and $SM_OUTPUT_DATA_DIR
    the curves and pictures. When failed, SageMaker's failure file has the reason.

    Args:
        argv: the hyperparameters; by default the arguments of this process, which then handles signals as the job.
    """
    if argv is None:
        with signals.process("diffusion"):  # before the imports, which take seconds
            return job(sys.argv[1:])
    return job(argv)


def job(argv: list[str]) -> int:
    """The body of `main`; see there."""
    from diffusion.commands.options.errors import explain
    from diffusion.support.runs import checkpoints
    from diffusion.training.run import train

    try:
        hosts = json.loads(os.environ.get("SM_HOSTS", "[]"))
        if len(hosts) > 1 and "WORLD_SIZE" not in os.environ:
            raise ValueError(
                f"{len(hosts)} machines without a distributed launcher: give the estimator "
                'distribution={"torch_distributed": {"enabled": True}}'
            )
        with signals.listening() as listener:
            run = train(arguments(argv), final=False)
            listener.wait()  # only complete files are copied
            if run.trainer.is_global_zero:
                keep(run.folder)
    except signals.Stopped as stop:
        if stop.run and checkpoints(stop.run):
            keep(stop.run)
        return stop.code
    except Exception as error:
        said, code = explain(error, "fit")
        if code == 1:  # not a user error: the log is the only record
            traceback.print_exc()
        fail(said.removesuffix(" (--debug shows where)"))
        return 1
    return 0


def arguments(argv: list[str]) -> list[str]:
    """Arguments of `diffusion fit` from a job's hyperparameters: `--name value` pairs, else $SM_HPS.

    Raises:
        FileNotFoundError: there is no such configuration.
    """
    if not argv:
        argv = [w for k, v in json.loads(os.environ.get("SM_HPS", "{}")).items() for w in (f"--{k}", str(v))]
    words = iter([w for word in argv for w in (word.split("=", 1) if word.startswith("--") else [word])])
    given: list[str] = []
    for word in words:
        if word in ("-c", "--config"):
            given += [w for name in next(words, "").split(",") for w in ("-c", str(configuration(name.strip())))]
        elif word.startswith("--"):
            name = word[2:].replace("-", "_")
            given.append(f"--{SHORT.get(name, name)}")
        else:
            given.append(word)
    defaults = {"--resume": "auto", "--out": str(run_root())}
    return given + [w for option, value in defaults.items() if option not in given for w in (option, value)]


def keep(run: Path) -> None:
    """Write what SageMaker uploads: a small run directory as the model, and the rest of the run as output."""
    import yaml

    from diffusion.support import runs

    model, output = (os.environ.get(k) for k in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"))
    if model:
        (Path(model) / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copy2(runs.checkpoints(run)[0], Path(model) / "checkpoints" / "last.ckpt")
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"out": "", "resume": ""}  # paths of this job
        (Path(model) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if grids := sorted((run / "samples").glob("step*.png")):
            shutil.copy2(grids[-1], Path(model) / "samples.png")
    if output:
        target = Path(output) / run.parent.name / run.name
        shutil.copytree(run, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
    print(f"written for SageMaker: {', '.join(filter(None, (model, output)))}", flush=True)


def fail(reason: str) -> None:
    """Report the reason in the log and in SageMaker's failure file (the job's FailureReason, at most 1024 characters).

    With several processes the first reason is kept: the others only notice that one has ended.
    """
    print(f"diffusion: error: {reason}", file=sys.stderr, flush=True)
    file = _output() / "failure"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(reason[:1024])


def _output() -> Path:
    """SageMaker's output folder (/opt/ml/output), from the job's environment variables."""
    if "SM_OUTPUT_DIR" in os.environ:
        return Path(os.environ["SM_OUTPUT_DIR"])
    return Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")).parent / "output"


if __name__ == "__main__":
    sys.exit(main())
