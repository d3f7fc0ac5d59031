"""The wheel: what it has, and that it runs where the repository is not."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from diffusion import __version__
from diffusion.cli import main
from diffusion.support import configurations, paths

try:
    import tomllib
except ImportError:  # Python 3.10; pytest requires it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffusion"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = PROJECT["tool"]["setuptools"]
LEFT = ("*.py", "*.pyc", "*.tmp-*", ".DS_Store")


def needed() -> set[str]:
    """The files other than programs that the package reads, by their paths within it."""
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and not any(map(p.match, LEFT)))
    inside = {str(p.relative_to(PACKAGE)) for p in files}
    return inside | {f"configs/{p.name}" for p in (ROOT / "configs").iterdir() if not any(map(p.match, LEFT))}


def test_every_package_is_listed():
    found = [".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")]
    assert sorted(SETUP["packages"]) == sorted([*found, "diffusion.configs"])
    assert (ROOT / SETUP["package-dir"]["diffusion.configs"]).is_dir()


def test_package_data_has_each_file_that_is_no_program():
    listed = [
        f"{package.replace('.', '/')}/{glob}" for package, globs in SETUP["package-data"].items() for glob in globs
    ]
    files = {f"diffusion/{name}" for name in needed()}
    assert {"diffusion/data/digits.npz", "diffusion/configs/default.yaml", "diffusion/zoo/digits/digits.ckpt"} <= files
    for file in files:
        same = [glob for glob in listed if glob.count("/") == file.count("/")]  # * does not match a slash there
        assert any(fnmatch.fnmatch(file, glob) for glob in same), f"{file} is missing in [tool.setuptools.package-data]"


def test_runs_and_data_of_an_installed_wheel_are_in_the_current_folder(monkeypatch, tmp_path):
    for name in ("SM_CHANNEL_TRAINING", "DIFFUSION_DATA", "DIFFUSION_OUT", "SM_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.CONFIGS == ROOT / "configs" and paths.run_root() == ROOT / "lightning_logs"
    monkeypatch.setattr(paths, "INSTALLED", True)
    assert paths.run_root() == tmp_path / "lightning_logs" and paths.data_root() == tmp_path / "data"


@pytest.mark.parametrize("name", ["digits", "digits.yaml", "configs/digits.yaml", "./configs/digits.yaml"])
def test_a_configuration_is_found_by_name_in_any_folder(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configurations.configuration(name) == ROOT / "configs/digits.yaml"
    (tmp_path / "digits").mkdir()  # a folder is no configuration
    assert configurations.configuration(name) == ROOT / "configs/digits.yaml"
    mine = tmp_path / name
    if name != "digits":
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("")
        assert configurations.configuration(name) == Path(name)  # a file here comes first


def test_only_names_of_configurations_are_replaced_on_a_command_line():
    digits = str(ROOT / "configs/digits.yaml")
    argv = ["-c", "digits", "--config=digits", "--data", "digits", "-c", "{model: {lr: 1}}", "--experiment", "-c"]
    assert configurations.located(argv) == ["-c", digits, f"--config={digits}", *argv[3:]]


@pytest.mark.parametrize("argv", [["fit", "-c", "digitz"], ["describe", "-c", "digitz.yaml"]])
def test_an_unknown_configuration_is_refused_with_near_names(argv, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "there is no file 'digitz" in said and "did you mean 'digits' or 'digits_" in said
    with pytest.raises(FileNotFoundError, match="the package's are in .*configs$"):
        configurations.configuration("nothing_like_it")
    with pytest.raises(FileNotFoundError, match="no configuration of that name"):
        configurations.configuration("elsewhere/digits.yaml")


# --- built and installed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the repository, made by way of the sdist and without a network."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("diffusion", "configs", "tests/bench", "benchmarks"):  # the last two are not to be installed
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(argv, cwd=out, env=outside(out), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob(f"litdiffusion-{__version__}.tar.gz"))) == 1
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a new environment with this wheel, and with the other packages of the present one.

    A .pth file adds the folders of the present packages but not what their own .pth files add, so an editable install
    of this project is left out.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    (site,) = place.glob("lib/python3*/site-packages")
    present = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "present.pth").write_text("\n".join(present) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run(pip, env=outside(place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "bin"


def outside(home: Path, programs: Path = Path(sys.executable).parent) -> dict[str, str]:
    """An environment without what leads to the repository or to earlier results."""
    kept = {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    return kept | {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home)}


@pytest.mark.slow
def test_the_wheel_has_the_package_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {n.removeprefix("diffusion/") for n in names if n.startswith("diffusion/")}
    assert {n for n in inside if not n.endswith(".py")} == needed()
    assert {n for n in inside if n.endswith(".py")} == {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")}
    assert {n.split("/")[0] for n in names} == {"diffusion", f"litdiffusion-{__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(installed, tmp_path):
    here = tmp_path / "empty"
    here.mkdir()

    def run(*argv: str) -> str:
        command = [str(installed / argv[0]), *argv[1:]]
        done = subprocess.run(command, cwd=here, env=outside(tmp_path, installed), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("python", "-c", "import diffusion; print(diffusion.__file__)").strip()
    assert Path(where).is_relative_to(installed.parent)
    assert run("diffusion", "--version").strip() == __version__
    said = run("diffusion", "doctor")
    assert f"{here}/lightning_logs: " in said and "everything is in order" in said and not list(here.iterdir())

    short = ["--n", "20", "--trainer.max_epochs", "1", "--gif.n", "1", "--samples.n", "1", "--diagnostics.images", "0"]
    said = run("diffusion", "demo", *short)
    assert re.search(r"Frechet +\d+\.\d+ to the training digits", said)
    assert "files in lightning_logs/digits/version_0/" in said and "\n  diffusion sample lightning_logs/digits" in said
    made = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    run_files = {"samples/grid.png", "samples/denoising.gif", "checkpoints/last.ckpt", "config.yaml"}
    assert {f"lightning_logs/digits/version_0/{name}" for name in run_files} <= made
    assert all(name.startswith("lightning_logs/digits/version_0/") for name in made)

    run("diffusion", "sample", "zoo:digits", "--n", "4", "--steps", "5", "--out", "zoo.png")
    assert (here / "zoo.png").read_bytes()[:4] == b"\x89PNG"
    assert "AttentionUNet on 1x8x8, 10 classes" in run("diffusion", "describe", "-c", "digits")
    run("diffusion", "fit", "-c", "configs/digits_mlp.yaml", "--trainer.fast_dev_run", "1", "--data.limit", "64")
