"""setup.sh and the pins, without installing anything.

The environments are real (`python -m venv --without-pip`) and contain small fakes of pip, torch and ipykernel, which
log their arguments.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import packaging
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FILES = ("setup.sh", "pyproject.toml", "constraints.txt")

TORCH = """
import os
class version: cuda = "13.2"
class cuda:
    is_available = staticmethod(lambda: "FAKE_GPU" in os.environ)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda i: type("gpu", (), {"name": "Fake GPU", "total_memory": 80 * 2**30}))
class backends:
    class mps: is_available = staticmethod(lambda: False)
get_num_threads = lambda: 2
"""
# `python -m pip install ...`: logs its arguments and constraints, and creates the files that a real one would.
PIP = """
import importlib.util, json, os, sys, pathlib
site = pathlib.Path(__file__).parents[1]
args = sys.argv[1:]
pins = pathlib.Path(args[args.index("-c") + 1]).read_text()
with open(os.environ["FAKE_LOG"], "a") as log:
    print(json.dumps({"pip": args, "pins": pins}), file=log)
if "FAKE_CONFLICT" in os.environ and "sympy==" in pins:
    pathlib.Path(args[args.index("--log") + 1]).write_text("ResolutionImpossible")
    sys.exit(1)
if "FAKE_OFFLINE" in os.environ:
    sys.exit("no network")
for name in ("torch", "torchvision", "pytorch_lightning", "diffusion", "litdiffusion"):
    package, info = site / name, site / f"{name}-2.15.0.dist-info"
    if not importlib.util.find_spec(name):
        package.mkdir()
        info.mkdir()
        (package / "__init__.py").write_text(os.environ["FAKE_TORCH"])
        (package / "__main__.py").write_text("import sys; print('ran', *sys.argv[1:])")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 2.15.0\\n")
"""
IPYKERNEL = """
import json, os, sys, pathlib
spec = pathlib.Path(os.environ["HOME"], "kernels/diffusion/kernel.json")
spec.parent.mkdir(parents=True)
spec.write_text(json.dumps({"argv": [sys.executable]}))
with open(os.environ["FAKE_LOG"], "a") as log:
    print(json.dumps({"kernel": sys.argv[1:]}), file=log)
"""


class Fake:
    """A copy of the three files in an empty folder, a home, and a PATH with a python3 that makes fake environments."""

    def __init__(self, tmp: Path) -> None:
        self.repo, self.home, self.bin, self.log = (tmp / n for n in ("a clone", "home", "bin", "log"))
        for folder in (self.repo, self.home, self.bin):
            folder.mkdir()
        for name in FILES:
            shutil.copy(ROOT / name, self.repo)
        self.fills = tmp / "fills"
        self.package(self.fills, "pip", main=PIP)
        self.package(self.fills, "ipykernel", main=IPYKERNEL)
        self.package(self.fills, "pytest", main="import sys; print('pytest', *sys.argv[1:])")
        self.package(self.fills, "jupyter_core")
        (self.fills / "jupyter_core/paths.py").write_text("import os\njupyter_data_dir = lambda: os.environ['HOME']\n")
        (self.fills / "packaging").symlink_to(Path(packaging.__file__).parent)
        self.base = Path(sys.base_prefix, "bin/python3")
        self.tool("python3", self.maker(self.base))
        self.tool("df", "printf 'x\\nx x x 99999999 x\\n'")

    def maker(self, python: Path) -> str:
        """`python3 -m venv ... DIR` without pip (ensurepip takes seconds), plus the fakes; otherwise that Python."""
        return f'''
            if [ "$1 $2" != "-m venv" ]; then exec "{python}" "$@"; fi
            for dir; do :; done
            "{python}" "$@" --without-pip && cp -R "{self.fills}/." "$dir"/lib/python3*/site-packages/
            '''

    @staticmethod
    def package(site: Path, name: str, version: str = "", code: str = "", main: str = "") -> None:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(code)
        (site / name / "__main__.py").write_text(main)
        if version:
            (site / f"{name}-{version}.dist-info").mkdir()
            (site / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    def tool(self, name: str, script: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def env(self, path: Path, **packages: str) -> Path:
        """An environment with the fakes and these packages; name=(version, code)."""
        venv.create(path, with_pip=False, symlinks=True)
        site = next(path.glob("lib/python3*/site-packages"))
        shutil.copytree(self.fills, site, dirs_exist_ok=True, symlinks=True)
        for name, (version, code) in packages.items():
            self.package(site, name, version, code)
        return path

    def conda(self, path: Path, **packages: str) -> Path:
        """An environment as conda makes them: a Python with a prefix of its own, which a venv over it inherits."""
        shared = next(Path(sys.base_prefix, "lib").glob(f"python3.{sys.version_info[1]}"))
        own = path / "lib" / shared.name
        (own / "site-packages").mkdir(parents=True)
        for folder in ("bin", "conda-meta"):
            (path / folder).mkdir()
        for item in shared.iterdir():
            if item.name != "site-packages":
                (own / item.name).symlink_to(item)
        real = path / "bin" / shared.name
        shutil.copy(self.base.resolve(), real)
        self.tool("python", self.maker(real), path / "bin")
        for name, (version, code) in packages.items():
            self.package(own / "site-packages", name, version, code)
        return path

    def run(self, *args: str, cwd: Path | None = None, home: str | None = None, **env: str):
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "FAKE_LOG": str(self.log), **env}
        env |= {"FAKE_TORCH": TORCH} | ({} if home is None else {"HOME": home})
        command = ["bash", str(self.repo / "setup.sh"), *args]
        return subprocess.run(command, cwd=cwd or self.home, env=env, capture_output=True, text=True, timeout=600)

    @property
    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def pips(self) -> list[dict]:
        return [call for call in self.calls if "pip" in call]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def tree(folder: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*")}


# ---------------------------------------------------------------- the script


def test_scripts_are_valid_bash():
    for name in ("setup.sh", ".ci/run", "docs/sagemaker/on-start.sh"):
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
        assert os.access(ROOT / name, os.X_OK), f"{name} is not executable"


def test_setup_help_lists_the_options(fake):
    done = fake.run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("demo", "test", "--check", "--python", ".venv"):
        assert word in done.stdout


@pytest.mark.parametrize("args", [["tset"], ["--chek"], ["--python"], ["--python="]])
def test_unknown_argument_is_one_line_and_exit_2(fake, args):
    done = fake.run(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and args[0].rstrip("=") in done.stderr
    assert not fake.calls


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_check_changes_nothing(fake, tmp_path, home):
    env = fake.env(tmp_path / "env", torch=("2.7.0", TORCH), torchvision=("0.22.0", ""))
    before = tree(tmp_path)
    for active in ({}, {"VIRTUAL_ENV": str(env)}):
        done = fake.run("--check", cwd=tmp_path, home=home, **active)
        assert done.returncode == 1, done.stderr
        assert "not ready: nothing is set up here yet" in done.stdout
    assert "torch        2.7.0 (CUDA 13.2), torchvision 0.22.0" in done.stdout
    assert tree(tmp_path) == before and not fake.calls


def test_fresh_install_and_a_second_run_without_work(fake):
    first = fake.run()
    assert first.returncode == 0, first.stderr
    assert re.search(r"source .*/a\\ clone/\.venv/bin/activate\n  diffusion demo", first.stdout)
    (call,) = fake.pips
    assert call["pip"][-2:] == ["-e", ".[notebook]"]
    assert call["pins"] == "".join(
        line + "\n" for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    kernels = [c["kernel"] for c in fake.calls if "kernel" in c]
    assert kernels == [["install", "--user", "--name", "diffusion", "--display-name", "Python (diffusion)"]]

    again = fake.run("demo", "--steps", "3")
    assert again.stdout == "ran demo --steps 3\n" and len(fake.calls) == 2  # neither pip nor the kernel
    assert fake.run("--check").returncode == 0
    shutil.rmtree(fake.home / "kernels")
    assert fake.run("demo").returncode == 0 and len(fake.calls) == 3  # a missing kernel is registered again


def test_extras_depend_on_the_command_and_are_kept(fake):
    assert fake.run().returncode == 0
    assert fake.run("--check", "test").returncode == 1
    done = fake.run("test", "-m", "slow", "-k", "a b")
    assert done.stdout.splitlines()[-1] == "pytest -m slow -k a b"
    assert [c["pip"][-1] for c in fake.pips] == [".[notebook]", ".[notebook,test]"]
    assert fake.run("text", "-q").stdout.splitlines()[-1] == "pytest -m pretrained -q"
    assert fake.pips[-1]["pip"][-1] == ".[notebook,test,text]"
    assert re.search(
        "No module named '?docs", fake.run("docs").stderr
    )  # installed, and then run, where there are pages
    assert fake.pips[-1]["pip"][-1] == ".[docs,notebook,test,text]"
    with (fake.repo / "constraints.txt").open("a") as file:
        file.write("# a change\n")
    assert "changed since the last set-up" in fake.run("--check").stdout
    assert fake.run().returncode == 0 and fake.pips[-1]["pip"][-1] == ".[docs,notebook,test,text]"


def test_marker_is_verified(fake):
    fake.run()
    info = next(fake.repo.glob(".venv/lib/*/site-packages/litdiffusion-*"))
    with (info / "METADATA").open("a") as file:
        file.write("Requires-Dist: torch>=99\nRequires-Dist: nothere; extra == 'test'\n")
    assert "not ready: torch 2.15.0 does not satisfy >=99" in fake.run("--check").stdout
    shutil.rmtree(info)
    assert "not ready: litdiffusion is not installed" in fake.run("--check").stdout


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "--python"])
def test_setup_keeps_a_working_torch(fake, tmp_path, variable):
    env = fake.env(tmp_path / "env", torch=("2.10.0+cu128", TORCH), torchvision=("0.25.0", ""), numpy=("1.26.4", ""))
    if variable == "--python":
        done = fake.run("--python", "env/bin/python", cwd=tmp_path)  # counts from the caller's folder
        assert f"{env}/bin/python -m diffusion demo" in done.stdout
    else:
        done = fake.run(**{variable: str(env)})
        assert "\n  diffusion demo" in done.stdout and "activate" not in done.stdout
    assert done.returncode == 0, done.stderr
    assert "Keeping torch 2.10.0+cu128 and torchvision 0.25.0" in done.stdout
    pins = fake.pips[0]["pins"].splitlines()
    assert [p for p in pins if p.startswith("torch=")] == ["torch==2.10.0+cu128"]
    assert [p for p in pins if p.startswith("torchvision=")] == ["torchvision==0.25.0"]
    assert not [p for p in pins if p.startswith("numpy=")], "what is installed is not moved"
    assert [p for p in pins if p.startswith("pytorch-lightning==")]
    assert not (fake.repo / ".venv").exists()


def test_active_environment_without_torch_gets_the_pinned_one(fake, tmp_path):
    env = fake.env(tmp_path / "env")
    assert fake.run(VIRTUAL_ENV=str(env)).returncode == 0
    assert "torch==2.15.0" in fake.pips[0]["pins"] and not (fake.repo / ".venv").exists()


@pytest.mark.parametrize("version, code", [("2.5.1", TORCH), ("2.9.0", "raise OSError('libcudart is missing')")])
def test_a_torch_that_is_old_or_broken_is_left_alone(fake, tmp_path, version, code):
    env = fake.env(tmp_path / "env", torch=(version, code))
    before = tree(env)
    done = fake.run(VIRTUAL_ENV=str(env))
    assert done.returncode == 0, done.stderr
    assert version in done.stderr and "using .venv instead" in done.stderr
    assert tree(env) == before and (fake.repo / ".venv/bin/python").exists()


@pytest.mark.slow
def test_conflicting_pins_are_dropped_except_torchs(fake, tmp_path):
    env = fake.env(tmp_path / "env", torch=("2.6.0", TORCH), torchvision=("0.21.0", ""))
    done = fake.run(VIRTUAL_ENV=str(env), FAKE_CONFLICT="1")
    assert done.returncode == 0 and "trying again" in done.stdout
    assert fake.pips[1]["pins"] == "torch==2.6.0\ntorchvision==0.21.0\n"


@pytest.mark.slow
def test_stale_active_environment_is_passed_over(fake, tmp_path):
    done = fake.run(VIRTUAL_ENV=str(tmp_path / "gone"))
    assert done.returncode == 0 and "gone" in done.stderr and (fake.repo / ".venv/bin/python").exists()


@pytest.mark.slow
def test_moved_folder_gets_a_new_environment(fake):
    fake.run()
    fake.repo = fake.repo.rename(fake.repo.with_name("elsewhere"))
    assert fake.run().returncode == 0 and len(fake.pips) == 2
    assert str(fake.repo / ".venv") in (fake.repo / ".venv/bin/activate").read_text()


@pytest.mark.parametrize("kind", ["disk", "ensurepip", "offline"])
def test_failures_are_reported_in_one_line(fake, kind):
    env = {}
    if kind == "disk":
        fake.tool("df", "printf 'x\\nx x x 3500000 x\\n'")
        words = "7 GB of free disk"
    elif kind == "ensurepip":
        for name in ("python3", *(f"python3.{n}" for n in range(10, 14))):
            fake.tool(name, f'case "$2" in *ensurepip*) exit 1 ;; esac; exec "{fake.base}" "$@"')
        words = "python3-venv"
    else:
        env, words = {"FAKE_OFFLINE": "1"}, "pip failed"
    done = fake.run(**env)
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
    assert fake.run("--check").returncode == 1  # and there is no marker of success


@pytest.mark.slow
def test_kernel_that_cannot_be_registered_is_a_warning(fake):
    (fake.home / "kernels").write_text("in the way")
    done = fake.run()
    assert done.returncode == 0 and "kernel was not registered" in done.stderr


def test_check_reports_gpu_and_driver(fake, tmp_path):
    env = fake.env(tmp_path / "env", torch=("2.15.0", TORCH), torchvision=("0.29.2", ""))
    fake.tool("nvidia-smi", "echo 550.54.15; echo 550.54.15")
    old = fake.run("--check", VIRTUAL_ENV=str(env)).stdout
    assert "driver 550.54.15 is too old for this torch (CUDA 13.2)" in old and "device       CPU, 2 threads" in old
    good = fake.run("--check", VIRTUAL_ENV=str(env), FAKE_GPU="1").stdout
    assert "device       Fake GPU, 80 GiB, 2 of them" in good and "warning" not in good
    fake.tool("nvidia-smi", "echo Failed to initialize NVML; exit 18")
    assert "no NVIDIA driver" in fake.run("--check", VIRTUAL_ENV=str(env)).stdout


# ---------------------------------------------------------------- a SageMaker notebook instance


@pytest.fixture
def sagemaker(fake) -> Fake:
    """A clone in ~/SageMaker, with the kernels' environments, which have the only Python >= 3.10."""
    (fake.home / "SageMaker").mkdir()
    fake.repo = fake.repo.rename(fake.home / "SageMaker" / "a clone")
    fake.conda(fake.home / "anaconda3/envs/JupyterSystemEnv")
    packages = {"torch": ("2.10.0", TORCH), "torchvision": ("0.25.0", ""), "numpy": ("1.26.4", "")}
    fake.conda(fake.home / "anaconda3/envs/pytorch_p310", **packages)
    for name in ("python3", *(f"python3.{n}" for n in range(10, 14))):
        fake.tool(name, "exit 1")
    fake.tool("sudo", f"touch {fake.home}/sudo; exit 1")
    return fake


@pytest.mark.parametrize("choice", ["", "CONDA_PREFIX", "--python"])
def test_notebook_instance_gets_an_environment_on_top_of_the_kernels(sagemaker, tmp_path, choice):
    kernels = sagemaker.home / "anaconda3/envs/pytorch_p310"
    before = tree(kernels)
    args = ["--python", str(kernels)] if choice == "--python" else []
    done = sagemaker.run(*args, cwd=tmp_path, **({choice: str(kernels)} if choice == "CONDA_PREFIX" else {}))
    assert done.returncode == 0, done.stderr
    assert "Keeping torch 2.10.0 and torchvision 0.25.0" in done.stdout and "on-start.sh" in done.stdout
    pins = sagemaker.pips[0]["pins"].splitlines()
    assert "torch==2.10.0" in pins and not [p for p in pins if p.startswith("numpy=")]
    own = sagemaker.repo / ".venv"
    assert tree(kernels) == before and not list(own.glob("lib/*/site-packages/torch"))
    spec = json.loads((sagemaker.home / "kernels/diffusion/kernel.json").read_text())
    assert spec["argv"] == [str(own / "bin/python")] and not (sagemaker.home / "sudo").exists()
    code = "import torch; print(torch.__file__)"
    there = subprocess.run([own / "bin/python", "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.startswith(str(kernels))  # the kernels' torch is used


def test_studio_gets_an_environment_in_the_clone(fake, tmp_path):
    fake.repo = fake.repo.rename(fake.home / "a clone")
    env = fake.conda(tmp_path / "conda", torch=("2.10.0", TORCH), torchvision=("0.25.0", ""))
    before = tree(env)
    done = fake.run(CONDA_PREFIX=str(env), SAGEMAKER_APP_TYPE="JupyterLab")
    assert done.returncode == 0 and "Keeping torch 2.10.0" in done.stdout and "on-start" not in done.stdout
    assert tree(env) == before and (fake.repo / ".venv/bin/python").exists()


def test_conda_environment_outside_sagemaker_is_installed_into(fake, tmp_path):
    env = fake.conda(tmp_path / "env", torch=("2.10.0", TORCH), torchvision=("0.25.0", ""))
    shutil.copytree(fake.fills, next(env.glob("lib/python3*/site-packages")), dirs_exist_ok=True, symlinks=True)
    (fake.home / "SageMaker").mkdir()  # a folder of that name alone is no evidence
    assert fake.run(CONDA_PREFIX=str(env)).returncode == 0 and not (fake.repo / ".venv").exists()


def test_the_lifecycle_script_restores_the_kernel(sagemaker):
    """Run twice as root, from /, without HOME, in a home emptied by a stop; other clones are left alone."""
    assert sagemaker.run().returncode == 0
    home, kernel = sagemaker.home, sagemaker.home / "kernels/diffusion/kernel.json"
    other = home / "SageMaker" / "0"  # comes first in the shell's order
    other.mkdir()
    (other / "setup.sh").write_text(f"touch {home}/touched")
    place = f'HOME="{home}" PATH="{sagemaker.bin}:/usr/bin:/bin" FAKE_LOG="$FAKE_LOG" FAKE_TORCH="$FAKE_TORCH"'
    sagemaker.tool("sudo", f'[ "$*" = "-u ec2-user -i" ] && cd "{home}" && exec env -i {place} bash')
    env = {"PATH": f"{sagemaker.bin}:/sbin:/bin:/usr/sbin:/usr/bin", "FAKE_LOG": str(sagemaker.log)}
    log = home / "SageMaker/litdiffusion-start.log"
    for _ in range(2):
        shutil.rmtree(home / "kernels")
        log.unlink(missing_ok=True)  # the script returns before it has begun a new one
        done = subprocess.run(
            ["bash", str(ROOT / "docs/sagemaker/on-start.sh")], cwd="/", env=env | {"FAKE_TORCH": TORCH},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout + done.stderr == ""
        for _ in range(6000):
            if log.exists() and "docs/sagemaker.md" in log.read_text():
                break
            time.sleep(0.1)
        assert json.loads(kernel.read_text())["argv"] == [str(sagemaker.repo / ".venv/bin/python")]
    assert len(sagemaker.pips) == 1 and not (home / "touched").exists()


def test_the_lifecycle_script_never_keeps_an_instance_from_starting(sagemaker):
    env = {"PATH": f"{sagemaker.bin}:/sbin:/bin:/usr/sbin:/usr/bin"}
    done = subprocess.run(
        ["bash", str(ROOT / "docs/sagemaker/on-start.sh")], cwd="/", env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "LitDiffusion: the kernel is not restored\n"
    assert len((ROOT / "docs/sagemaker/on-start.sh").read_text()) < 16384  # SageMaker's limit


# ---------------------------------------------------------------- the pins

PINS = [Requirement(s) for s in (ROOT / "constraints.txt").read_text().splitlines() if s and s[0] != "#"]


def wanted(extra: str = "") -> list[Requirement]:
    """The requirements in pyproject.toml (read without tomllib, which Python 3.10 lacks)."""
    text = (ROOT / "pyproject.toml").read_text()
    pattern = rf"^{extra or 'dependencies'} = \[(.*?)\](?=\s*(?:#.*)?$)"
    block = re.search(pattern, text, re.M | re.S)[1]
    return [Requirement(s) for s in re.findall(r'"([^"]+)"', block)]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_pin_is_in_range(python):
    env = {**default_environment(), "python_version": python, "python_full_version": python + ".9"}
    pins = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(env):
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice for Python {python}"
            pins[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    needs = [r for extra in ("", "notebook", "text", "test", "dev", "docs") for r in wanted(extra)]
    assert len(needs) >= 18
    for need in needs:
        if need.name != "litdiffusion":
            have = pins[canonicalize_name(need.name)]
            assert need.specifier.contains(have), f"{need} on Python {python}, but constraints.txt has {have}"


def test_pins_are_exact_and_hold_no_address():
    for pin in PINS:
        (spec,) = pin.specifier
        assert spec.operator == "==" and "*" not in spec.version and "+" not in spec.version, pin
        assert pin.url is None and not pin.extras
        assert not pin.name.startswith(("nvidia-", "cuda-")) and pin.name != "triton", f"{pin.name} is torch's business"
    for name in (*FILES, ".ci/run", "CONTRIBUTING.md"):
        assert not re.search(r"https?://|file://|index-url", (ROOT / name).read_text()), f"{name} names an address"


def test_version_is_read_without_importing():
    """setuptools reads `attr:` from the source only where it is a plain literal."""
    source = (ROOT / "diffusion/__init__.py").read_text()
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', source, re.M)
