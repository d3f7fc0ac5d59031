#!/usr/bin/env bash
# Sets up LitDiffusion from any directory, without sudo. A run with nothing to do takes seconds.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$(pwd -P)

usage() {
  cat <<'END'
usage: ./setup.sh [--python PATH] [--check] [demo | test | text | lint | docs] [arguments passed on]

  ./setup.sh            install, and register the Jupyter kernel "Python (diffusion)"
  ./setup.sh demo ...   the same, then: python -m diffusion demo ...
  ./setup.sh test ...   the same with the test packages, then: python -m pytest ...   (test -m slow: slow tests)
  ./setup.sh text ...   the same with transformers as well, for the tests of pretrained text models alone
  ./setup.sh lint ...   the same with the developer packages, then: python -m ruff check ...
  ./setup.sh docs       the same with the packages of the documentation, then builds its site (--serve: and shows it)

  --check         report the state and change nothing; exit with 0 if ready, 1 if not
  --python PATH   the Python of an environment (installs into it), or a plain Python (creates .venv with it)
  --help          show this text

Installs into the environment of --python, else the active conda or virtual environment, else .venv in this folder.
A working torch (2.6 or newer) in that environment is kept. On SageMaker, where a stop deletes the conda environments,
.venv is created on top of the one that has torch: see docs/sagemaker.md.
END
}

say() { printf '==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'setup.sh: %s\n' "$*" >&2; exit "${code:-1}"; }

# ---------------------------------------------------------------- queries to a Python
# One helper, run by the given Python: `ask PYTHON QUESTION ...`. It writes only the marker file.
helper=$(cat <<'PY'
import hashlib, importlib.metadata as meta, importlib.util, json, os, re, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
here = Path.cwd()
sys.path = [p for p in sys.path if p not in ("", ".", str(here))]       # see only what is installed
marker = Path(sys.prefix, ".litdiffusion-setup.json")
question, args = sys.argv[1], sys.argv[2:]

def version(name):
    try:
        return meta.version(name)
    except meta.PackageNotFoundError:
        return None

def numbers(text):
    return tuple(map(int, re.findall(r"\d+", text)[:2]))

def fingerprint():
    files = b"".join(Path(f).read_bytes() for f in ("pyproject.toml", "constraints.txt", "setup.sh"))
    return hashlib.sha256(files + b"%d.%d" % sys.version_info[:2]).hexdigest()

def recorded():
    try:
        return json.loads(marker.read_text())
    except (OSError, ValueError):
        return {}

def status(extras):
    """'ready', or the reason why not."""
    old = recorded()
    if not old:
        return "nothing is set up here yet"
    if old.get("repo") != str(here):
        return f"this environment was set up for {old.get('repo')}"
    if old.get("hash") != fingerprint():
        return "pyproject.toml, constraints.txt, setup.sh or Python changed since the last set-up"
    if lacking := sorted(set(extras) - set(old.get("extras", []))):
        return "the packages for " + ", ".join(lacking) + " are not installed"
    if not version("litdiffusion"):
        return "litdiffusion is not installed"
    if not importlib.util.find_spec("packaging"):
        return "packaging is missing"
    from packaging.requirements import Requirement
    for line in meta.requires("litdiffusion") or ():
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
            continue
        have = version(need.name)
        if not have or not need.specifier.contains(have, prereleases=True):
            return f"{need.name} is missing" if not have else f"{need.name} {have} does not satisfy {need.specifier}"
    return "ready"

def torch_state():
    """'none', 'old 2.1.0', 'broken 2.6.0 reason' or 'works 2.6.0 0.21.0'."""
    have, vision = version("torch"), version("torchvision")
    if not have:
        return "none"
    if numbers(have) < numbers(re.search(r'"torch>=([\d.]+)"', Path("pyproject.toml").read_text())[1]):
        return f"old {have}"
    try:
        import torch
        if vision:
            import torchvision
    except Exception as error:
        return f"broken {have} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"works {have} {vision or '-'}"

def constraints(own, torch="", vision=""):
    """constraints.txt with a working torch pinned; in a foreign environment, installed packages keep their versions."""
    for line in Path("constraints.txt").read_text().splitlines():
        name = re.match(r"[\w.-]*", line)[0]
        if name and not (name in ("torch", "torchvision") and torch) and (own == "1" or not version(name)):
            print(line)
    held(torch, vision)

def held(torch, vision="-"):
    if torch:
        print(f"torch=={torch}")
        if vision != "-":
            print(f"torchvision=={vision}")

def verify(torch=""):
    if torch and version("torch") != torch:
        sys.exit(f"torch {torch} should have been kept, but is now {version('torch')}")
    import torch, torchvision, pytorch_lightning
    if not importlib.util.find_spec("diffusion"):
        sys.exit("package 'diffusion' not found")

def kernel():
    try:
        from jupyter_core.paths import jupyter_data_dir
        spec = json.loads(Path(jupyter_data_dir(), "kernels/diffusion/kernel.json").read_text())
        return spec["argv"][0] == sys.executable
    except (ImportError, OSError, ValueError, LookupError):
        return False

def summary(driver):
    import torch
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"torch        {version('torch')} ({build}), torchvision {version('torchvision') or 'missing'}")
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        more = f", {torch.cuda.device_count()} of them" if torch.cuda.device_count() > 1 else ""
        print(f"device       {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB{more}")
    elif torch.backends.mps.is_available():
        print("device       Apple GPU (mps)")
    else:
        print(f"device       CPU, {torch.get_num_threads()} threads")
    print(f"driver       {'NVIDIA ' + driver if driver else 'no NVIDIA driver'}")
    if driver and not torch.cuda.is_available():
        why = f"driver {driver} is too old for this torch ({build})" if torch.version.cuda else "this torch has no CUDA"
        print(f"warning: the GPU will not be used: {why}; update the driver, or install a torch for its CUDA version "
              "into this environment and run ./setup.sh again, which keeps that torch")

if question == "kind":
    conda = Path(sys.prefix, "conda-meta").is_dir()
    print("conda" if conda else "venv" if sys.prefix != sys.base_prefix else "plain")
elif question == "status":
    print(status(args))
elif question == "torch":
    print(torch_state())
elif question == "constraints":
    constraints(*args)
elif question == "held":
    held(*args)
elif question == "verify":
    verify(*args)
elif question == "extras":
    print(",".join(sorted({*args, *recorded().get("extras", [])})))
elif question == "mark":
    extras = sorted({*args, *recorded().get("extras", [])})
    marker.write_text(json.dumps({"repo": str(here), "hash": fingerprint(), "extras": extras}))
elif question == "kernel":
    sys.exit(not kernel())
elif question == "summary":
    summary(*args)
PY
)
ask() { local py=$1; shift; "$py" -B -W ignore -c "$helper" "$@"; }
can() { "$1" -c "$2" >/dev/null 2>&1; }
new_enough() { can "$1" 'import sys; sys.exit(sys.version_info < (3, 10))'; }
named() { "$1" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])'; }
driver() { nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | grep -m 1 -E '^[0-9]+[.]' || true; }

# ---------------------------------------------------------------- which environment
# py: the environment's Python, empty until .venv exists.  base: the Python to create it with.
# own: 1 for our .venv.  torch: the output of `ask ... torch`, or empty when the environment is ready.
py='' base='' own=0 torch='' where='' state=''

look() {                                     # sets state, and torch if the environment is not ready
  state=$(ask "$1" status "${extras[@]}")
  torch=''
  if [[ $state != ready ]]; then torch=$(ask "$1" torch); fi
}

# The folder that SageMaker keeps after a stop, if the clone is in it: an environment elsewhere would be lost.
keeps=''
if [[ -n ${HOME:-} && -n ${SAGEMAKER_APP_TYPE:-} ]]; then    # Studio
  keeps=$HOME
elif [[ -n ${HOME:-} && -d $HOME/SageMaker ]]; then          # a notebook instance
  keeps=$HOME/SageMaker
fi
if [[ -n $keeps ]]; then keeps=$(cd "$keeps" && pwd -P); fi
if [[ $here != "$keeps"/* ]]; then keeps=''; fi

choose() {
  local given=$python name
  if [[ -n $given ]]; then
    if [[ -d $given ]]; then given+=/bin/python; fi
    given=$(type -P "$given") || die "--python: '$python' is not a working Python"
    case $given in /*) ;; *) given=$here/$given ;; esac
    new_enough "$given" || die "--python: '$python' is older than Python 3.10, or does not run"
    if [[ $(ask "$given" kind) == plain ]]; then base=$given given=''; else where="given by --python"; fi
  else
    for name in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
      [[ -n $name ]] || continue
      if [[ -x $name/bin/python ]] && new_enough "$name/bin/python"; then
        given=$name/bin/python where="the active environment"
        break
      fi
      warn "the active environment $name has no Python 3.10 or newer and is not used"
    done
  fi
  if [[ -n $given && -n $keeps && $(cd "${given%/bin/*}" && pwd -P) != "$keeps"/* ]]; then base=$given given=''; fi
  if [[ -n $given && ! ${given%/bin/*} -ef .venv ]]; then
    look "$given"
    case $torch in
      old*) warn "torch ${torch#old } of $given is older than the required 2.6: using .venv instead" ;;
      broken*) warn "torch of $given does not work (${torch#broken }): using .venv instead" ;;
      *) py=$given; return ;;
    esac
    if [[ -n $python ]]; then base=$given; fi
  fi
  choose_own
}

moved() {                                    # whether .venv was moved: its scripts contain absolute paths
  [[ $here != *\'* ]] && ! grep -qF "$here/.venv" .venv/bin/activate
}

choose_own() {
  local name
  own=1 where=".venv in this folder"
  if [[ -x .venv/bin/python ]] && new_enough .venv/bin/python && ! moved && { [[ -z $python || -z $base ]] ||
      [[ $(named "$base" | cut -d. -f1,2) == "$(named .venv/bin/python | cut -d. -f1,2)" ]]; }; then
    py=$here/.venv/bin/python
    look "$py"
    return
  fi
  if [[ -n $keeps && -z $base ]]; then       # none is active: use the kernel environment that has a working torch
    for name in "$HOME"/anaconda3/envs/*/bin/python; do
      if new_enough "$name" && [[ $(ask "$name" torch) == works* ]]; then base=$name; break; fi
    done
  fi
  for name in "$base" python3 python3.13 python3.12 python3.11 python3.10; do
    if [[ -z $name ]] || ! new_enough "$name"; then continue; fi
    base=$name
    if can "$name" 'import venv, ensurepip'; then
      state="nothing is set up here yet" torch=none
      if [[ $(ask "$name" kind) != venv ]]; then torch=$(ask "$name" torch); fi  # a venv's packages are not inherited
      if [[ $torch != works* ]]; then torch=none; fi
      return
    fi
  done
  [[ -n $base ]] || die "no Python 3.10 or newer found; install one, activate an environment, or give --python PATH"
  die "$(named "$base") cannot create environments: install python3-venv (on Debian and Ubuntu, requires an" \
    "administrator: apt install python3-venv), or activate a conda environment, and run this again"
}

# ---------------------------------------------------------------- installation
room() {                                     # a fresh torch takes 5.6 GB
  local dir=$1 free
  free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
  (( free >= 7 * 1024 * 1024 )) || die "torch requires 7 GB of free disk space at $dir, found $((free / 1024 / 1024)) GB"
}

install() {
  local hold=() dir=$here want opts=(--disable-pip-version-check) d
  if [[ $torch == works* ]]; then read -ra hold <<< "${torch#works }"; fi
  if (( ! own )); then dir=$("$py" -c 'import sys; print(sys.prefix)'); fi
  if [[ $torch == none ]]; then
    room "$dir"
    d=$(driver)
    if [[ -n $d ]] && (( ${d%%.*} < 580 )); then
      warn "NVIDIA driver $d: the torch on PyPI is built for CUDA 13, which requires driver 580 or newer; rather" \
        "activate an environment with a working torch and run this again"
    fi
  fi
  if [[ -z $py ]]; then
    [[ ! -e .venv || -e .venv/pyvenv.cfg || -z $(ls -A .venv) ]] || die ".venv exists but is not an environment; move it away"
    say "Creating .venv with $(named "$base") (10 seconds)"
    if (( ${#hold[@]} )); then
      "$base" -m venv --clear --system-site-packages .venv
    else
      "$base" -m venv --clear .venv
    fi
    py=$here/.venv/bin/python
  fi
  can "$py" 'import pip' || "$py" -m ensurepip >/dev/null || die "no pip in the environment of $py"

  want=$(ask "$py" extras "${extras[@]}")
  if (( ${#hold[@]} )); then
    say "Keeping torch ${hold[0]}$([[ ${hold[1]} == - ]] || echo " and torchvision ${hold[1]}")"
    say "Installing the other packages [$want] (about a minute)"
  else
    say "Installing torch and the other packages [$want] (5.6 GB on disk; about 3 minutes on a fast connection)"
  fi
  if [[ ! -t 1 ]]; then opts+=(--quiet --progress-bar off); fi
  if (( own )) && ! grep -qi 'include-system-site-packages *= *true' .venv/pyvenv.cfg; then
    ask "$py" constraints 1 ${hold[@]+"${hold[@]}"} > "$tmp/constraints.txt"
  else
    ask "$py" constraints 0 ${hold[@]+"${hold[@]}"} > "$tmp/constraints.txt"
  fi
  if ! "$py" -m pip install "${opts[@]}" --log "$tmp/log" -c "$tmp/constraints.txt" -e ".[$want]"; then
    if (( ! ${#hold[@]} )) || ! grep -q ResolutionImpossible "$tmp/log" 2>/dev/null; then
      die "pip failed (see its error above); fix the cause and run ./setup.sh again"
    fi
    say "The pinned versions conflict with this torch: trying again with only torch pinned"
    ask "$py" held "${hold[@]}" > "$tmp/constraints.txt"
    "$py" -m pip install "${opts[@]}" -c "$tmp/constraints.txt" -e ".[$want]" ||
      die "pip failed (see its error above); deactivate this environment to use .venv instead"
  fi
  ask "$py" verify ${hold[@]+"${hold[0]}"} > "$tmp/verify" 2>&1 ||
    die "the installation does not work: $(tail -n 1 "$tmp/verify")$( (( ! own )) || echo "; delete .venv and run this again")"
  ask "$py" mark "${extras[@]}" 2>/dev/null || warn "cannot write to the environment: the next run will check everything again"
}

register() {
  if ask "$py" kernel; then return; fi
  if "$py" -m ipykernel install --user --name diffusion --display-name "Python (diffusion)" > "$tmp/kernel" 2>&1; then
    say 'Registered the Jupyter kernel "Python (diffusion)"'
  else
    warn "the Jupyter kernel was not registered: $(tail -n 1 "$tmp/kernel")"
  fi
}

report() {
  local d
  echo "folder       $here"
  if [[ -z $py ]]; then
    echo "python       $(named "$base") ($base)"
    echo "environment  none yet; ./setup.sh creates .venv in this folder"
    if [[ $torch == none ]]; then echo "torch        none yet"; else echo "torch        ${torch#works }, will be kept"; fi
    d=$(driver)
    echo "driver       ${d:+NVIDIA }${d:-no NVIDIA driver}"
  else
    echo "python       $(named "$py") ($py)"
    echo "environment  $where"
    if [[ $torch == none ]]; then
      echo "torch        none yet"
    else
      ask "$py" summary "$(driver)" 2>/dev/null || echo "torch        does not work: ${torch:-import it to see why}"
    fi
    if ask "$py" kernel; then d="registered"; else d="not registered"; fi
    echo "kernel       \"Python (diffusion)\": $d"
  fi
  if [[ $state == ready ]]; then
    echo "state        ready (${extras[*]})"
  else
    echo "state        not ready: $state; run ./setup.sh${command:+ $command}"
    return 1
  fi
}

finish() {
  local run=diffusion prefix=${py%/bin/*}
  report
  echo
  if (( own )) && [[ ! ${VIRTUAL_ENV:-/none} -ef .venv ]]; then
    echo "Next, in this shell:"
    if [[ $caller -ef $here ]]; then echo "  source .venv/bin/activate"; else printf '  source %q/.venv/bin/activate\n' "$here"; fi
  else
    echo "Next:"
    if (( ! own )) && [[ ! ${VIRTUAL_ENV:-/none} -ef $prefix && ! ${CONDA_PREFIX:-/none} -ef $prefix ]]; then
      run=$(printf '%q -m diffusion' "$py")
    fi
  fi
  echo "  $run demo      # trains a small model and writes a GIF of its sampling"
  echo "  $run --help    # lists all commands"
  if [[ -n $keeps && -d $HOME/SageMaker ]]; then
    echo "docs/sagemaker/on-start.sh restores the kernel after this instance is stopped: see docs/sagemaker.md"
  fi
}

# ---------------------------------------------------------------- the command line
python='' check=0 command=''
bad() { code=2 die "$* (see ./setup.sh --help)"; }
while (( $# )); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --check) check=1 ;;
    --python) (( $# > 1 )) || bad "--python requires a path"; python=$2; shift ;;
    --python=*) python=${1#*=}; [[ -n $python ]] || bad "--python requires a path" ;;
    demo | test | text | lint | docs) command=$1; shift; break ;;
    *) bad "unknown argument '$1'" ;;
  esac
  shift
done
# A relative path is resolved against the caller's directory.
case $python in /* | '') ;; */*) python=$caller/$python ;; esac
case $command in
  test) extras=(notebook test) ;;
  text) extras=(notebook test text) ;;
  lint) extras=(notebook test dev) ;;
  docs) extras=(notebook test docs) ;;
  *) extras=(notebook) ;;
esac

choose
if (( check )); then
  if report; then exit 0; else exit 1; fi
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if [[ $state != ready ]]; then install; state=ready; torch=''; fi
register
rm -rf "$tmp"
case $command in
  demo) exec "$py" -m diffusion demo "$@" ;;
  test) exec "$py" -m pytest "$@" ;;
  text) exec "$py" -m pytest -m pretrained "$@" ;;
  lint) exec "$py" -m ruff check "$@" ;;
  docs) exec "$py" -m docs.site.build "$@" ;;
  *) finish ;;
esac
