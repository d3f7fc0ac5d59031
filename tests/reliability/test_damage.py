"""Damaged and malicious checkpoints are detected before any of them is used, and the valid one is taken."""

import io
import pickle
import random
import shutil
import zipfile

import pytest
import torch

from diffusion import Diffusion
from diffusion.cli import main
from diffusion.nets import AttentionUNet
from diffusion.support import runs
from diffusion.support.files import link, sweep
from diffusion.support.seal import problem
from diffusion.support.specs import build
from diffusion.training.callbacks import DurableIO


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (exec, (f"open({self.mark!r}, 'w')",))


def write(path, **more):
    """Write a small checkpoint as a run does."""
    model = Diffusion(AttentionUNet(1, (8, 8), heads=2, attention=1), shape=(1, 8, 8))
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 5, "epoch": 0}
    DurableIO().save_checkpoint({**state, **more}, path)


def damages(good, mark):
    """Yield (name, bytes) of 200 files that are not valid checkpoints."""
    size, draw = len(good), random.Random(0)
    for at in sorted({0, 1, 3, size // 2, size - 1, size - 64, size - 72, size - 93, *draw.sample(range(size), 52)}):
        yield f"cut at {at}", good[:at]
    places = {0, size - 1, size - 30, size - 64, size - 65, size - 71, size - 72, size - 73, size - 80, size - 93}
    for at in sorted(places | {*draw.sample(range(size), 100)}):
        yield f"byte {at} flipped", good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :]
    for length in (1, 100, 512, 4096):
        for at in draw.sample(range(size - length), 3):
            yield f"{length} zeros at {at}", good[:at] + bytes(length) + good[at + length :]
    yield "an appended byte", good + b"\0"
    yield "twice", good + good
    for name, thing in (("pickle", {"state_dict": {}}), ("malicious pickle", Evil(mark))):
        for protocol in range(6):
            yield f"{name} {protocol}", pickle.dumps(thing, protocol)
    for name, thing in (("tensor", torch.zeros(3)), ("list", [1]), ("other keys", {"weights": torch.zeros(3)}),
                        ("malicious archive", {"state_dict": Evil(mark)}), ("alone", Evil(mark))):  # fmt: skip
        for old in (False, True):
            file = io.BytesIO()
            torch.save(thing, file, _use_new_zipfile_serialization=not old)
            yield f"{name} {old}", file.getvalue()
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), script)
    yield "TorchScript", script.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil(mark)))
    yield "deflated", archive.getvalue()
    yield from [("text", b"hello\n"), ("PNG", b"\x89PNG\r\n\x1a\n" + bytes(50)), ("gzip", b"\x1f\x8b" + bytes(90))]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "digits" / "version_0" / "checkpoints"
    write(folder / "step00000004.ckpt", global_step=4)
    write(folder / "step00000005.ckpt")
    link(folder / "step00000005.ckpt", folder / "last.ckpt")
    return folder.parent


def test_200_damages_are_detected_and_the_older_file_is_used(run, tmp_path, capsys):
    good, mark = (run / "checkpoints" / "last.ckpt").read_bytes(), tmp_path / "ran"
    cases = dict(damages(good, mark))
    assert len(cases) >= 200
    for name, content in cases.items():
        assert content != good
        for file in ("last.ckpt", "step00000005.ckpt"):
            (run / "checkpoints" / file).write_bytes(content)
        path, read, skipped = runs.resumable(run.parent)
        assert path.name == "step00000004.ckpt" and read["global_step"] == 4, name
        assert [p.name for p in skipped] == ["last.ckpt", "step00000005.ckpt"], name
        for path, said in skipped.items():
            assert said.startswith(f"{path}: ") and len(said.splitlines()) == 1, (name, said)
            assert any(w in said for w in ("truncated", "damaged", "not a checkpoint", "could run code")), (name, said)
        assert not mark.exists(), name
    for name in list(cases)[::40]:  # the message that users see
        (run / "checkpoints" / "last.ckpt").write_bytes(cases[name])
        assert main(["sample", str(run), "--out", str(tmp_path / "a.png")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("diffusion sample: error: ") and len(said.splitlines()) == 1 and "Traceback" not in said


def test_flipped_bytes_are_detected_in_files_without_a_checksum(tmp_path):
    """Older checkpoints and plain torch.save: by the CRC-32 of their records, which torch.load ignores."""
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.arange(1000)}, path)
    assert problem(path) is None
    content = path.read_bytes()
    at = content.index(torch.arange(1000).numpy().tobytes()) + 4000
    path.write_bytes(content[:at] + b"\7" + content[at + 1 :])
    assert int(torch.load(path, weights_only=True)["a"][500]) != 500  # training would continue from this
    assert "data/0 does not match" in problem(path)


def test_the_checksum_moves_with_the_file(run, tmp_path):
    copy = tmp_path / "copied and renamed.pt"
    shutil.copyfile(run / "checkpoints" / "last.ckpt", copy)
    assert problem(copy) is None and runs.read_checkpoint(copy)["global_step"] == 5
    assert torch.load(copy, weights_only=True)["global_step"] == 5 and zipfile.ZipFile(copy).testzip() is None


@pytest.mark.parametrize("name, arguments", [
    ("os.system", {"command": "touch MARK"}),
    ("subprocess.Popen", {"args": ["touch", "MARK"]}),
    ("builtins.exec", {"source": "open('MARK', 'w')"}),
    ("pathlib.Path.touch", {"self": "MARK"}),
    ("diffusion.training.build.DiffusionCLI", {"argv": ["--out", "MARK"]}),
    ("diffusion.cli.main", {"argv": ["fit"]}),
])  # fmt: skip
@pytest.mark.parametrize("part", ["net", "sampler"])
def test_a_valid_file_whose_specs_would_run_code_is_refused(name, arguments, part, run, tmp_path, capsys):
    """Specs are plain values, harmless to torch.load, but they name what is called to build the model."""
    mark = tmp_path / "ran"
    path = run / "checkpoints" / "last.ckpt"
    read = torch.load(path, weights_only=True)
    said = {k: str(v).replace("MARK", str(mark)) if isinstance(v, str) else v for k, v in arguments.items()}
    said = {k: [w.replace("MARK", str(mark)) for w in v] if isinstance(v, list) else v for k, v in said.items()}
    read["hyper_parameters"][part] = {"class_path": name, "init_args": said}
    DurableIO().save_checkpoint(read, path)
    assert main(["sample", str(path), "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert ("not a component of a model" in error or "cannot import" in error) and len(error.splitlines()) == 1, error
    assert not mark.exists()


def test_only_torch_modules_and_classes_of_the_project_are_parts():
    assert isinstance(build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 2}}),
                      torch.nn.Linear)  # fmt: skip


def test_stale_temporary_files_are_no_checkpoints_and_are_removed(run):
    folder = run / "checkpoints"
    (folder / ".step00000009.tmp-abc12345.ckpt").write_bytes((folder / "last.ckpt").read_bytes())
    (folder / ".last.tmp-00000099.ckpt").write_bytes(b"half")
    assert {p.name for p in runs.checkpoints(run)} == {"last.ckpt", "step00000004.ckpt", "step00000005.ckpt"}
    assert len(sweep(run)) == 2 and len(list(folder.iterdir())) == 3
