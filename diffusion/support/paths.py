"""The environment and the location of files, decided in one place; in a repository, whatever the current directory."""

import json
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "configs").is_dir()  # from a wheel; a repository has them beside the package
CONFIGS = (PACKAGE if INSTALLED else PACKAGE.parent) / "configs"
METADATA = Path("/opt/ml/metadata/resource-metadata.json")  # on SageMaker's notebook instances and Studio


def base() -> Path:
    """The folder that has `data` and `lightning_logs`: the repository, or the current one if a wheel is installed."""
    return Path.cwd() if INSTALLED else PACKAGE.parent


def data_root(explicit: str | os.PathLike | None = None) -> Path:
    """The folder of the data sets: explicit | $SM_CHANNEL_TRAINING | $DIFFUSION_DATA | <base>/data."""
    chosen = explicit or os.environ.get("SM_CHANNEL_TRAINING") or os.environ.get("DIFFUSION_DATA")
    return Path(chosen).expanduser().absolute() if chosen else base() / "data"


def run_root(explicit: str | os.PathLike | None = None) -> Path:
    """The folder of the runs: explicit | $DIFFUSION_OUT | `checkpoints` beside $SM_MODEL_DIR | <base>/lightning_logs.

    In a SageMaker training job that is /opt/ml/checkpoints, which is synced while the job runs.
    """
    chosen = explicit or os.environ.get("DIFFUSION_OUT")
    if not chosen and os.environ.get("SM_MODEL_DIR"):
        chosen = Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints"
    return Path(chosen).expanduser().absolute() if chosen else base() / "lightning_logs"


def cache_root() -> Path:
    """The folder of reproducible files such as the metrics' classifiers: $DIFFUSION_CACHE | ~/.cache/litdiffusion."""
    chosen = os.environ.get("DIFFUSION_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "litdiffusion"


def home() -> str:
    """The SageMaker environment: "training job", "notebook instance" or "Studio"; empty elsewhere."""
    if os.environ.get("SM_MODEL_DIR"):
        return "training job"
    facts = _metadata()
    return "Studio" if facts.get("DomainId") else "notebook instance" if facts.get("ResourceName") else ""


def kept(folder: Path) -> bool:
    """Whether a folder survives a stop; on a notebook instance only ~/SageMaker does."""
    return home() != "notebook instance" or folder.resolve().is_relative_to((Path.home() / "SageMaker").resolve())


def tensorboard_address(port: int | str = 6006) -> str:
    """The address at which a browser reaches a TensorBoard that listens on a port of this machine.

    SageMaker's notebook instances and Studio reach it through their proxy, which requires the trailing slash. Studio
    does not expose its host name to programs, so there the address is a path, to be appended to the host name in the
    browser's address bar.
    """
    facts, where = _metadata(), home()
    if where == "notebook instance":
        region = facts.get("ResourceArn", "").split(":")[3:4]
        if region:
            return f"https://{facts['ResourceName']}.notebook.{region[0]}.sagemaker.aws/proxy/{port}/"
        return f"/proxy/{port}/"
    if where == "Studio":
        classic = facts.get("AppType") in ("JupyterServer", "KernelGateway")
        return f"/{'jupyter' if classic else 'jupyterlab'}/default/proxy/{port}/"
    return f"http://localhost:{port}/"


def _metadata() -> dict:
    """SageMaker's metadata of this machine; empty if there is none."""
    try:
        facts = json.loads(METADATA.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
