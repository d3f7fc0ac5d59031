"""model.onnx: the file alone samples, with every sampler and guidance that needs no gradient."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import diffusion
from diffusion import Pipeline
from diffusion.cli import main
from diffusion.denoiser.hints import Masked
from diffusion.exchange.exporting.onnx_file import inputs, serialized, stored_graph
from diffusion.guidance import APG, AutoGuidance, ClassifierFree, Interval, Plain, Steer
from diffusion.nets import AttentionUNet
from diffusion.nets.onnx_net import OnnxNet
from diffusion.samplers import DDPM, Heun, UniPC
from diffusion.support.released import KEY, metadata, with_metadata

from .conftest import context, digits, learned, pipeline

pytest.importorskip("onnxruntime", reason="pip install -e '.[test]'")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of the digits model."""
    return diffusion.export(digits(), tmp_path_factory.mktemp("onnx") / "model.onnx").files[0]


def close(found, wanted):
    assert found.shape == wanted.shape and float((found - wanted).abs().max()) < 1e-5


@pytest.mark.slow
def test_the_file_alone_gives_the_models_pictures(model, tmp_path):
    made = diffusion.export(model, tmp_path / "m.onnx")
    found = Pipeline.load(made.files[0])
    assert isinstance(found.denoiser.net, OnnxNet) and found.class_names == model.class_names
    close(found.sample(6, seed=2), model.sample(6, seed=2))
    assert made.difference is None


@pytest.mark.parametrize("sampler", [DDPM(10), UniPC(6), Heun(6, churn=2.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("guidance", [Plain(), APG(2.0), Interval(ClassifierFree(3.0), 0.1, 5)])
def test_samplers_and_guidances_work_with_the_file(written, sampler, guidance):
    how = {"sampler": sampler, "guidance": guidance, "seed": 1}
    close(Pipeline.load(written).sample(5, **how), digits().sample(5, **how))


@pytest.mark.parametrize(
    "make", [digits, pytest.param(context, marks=pytest.mark.slow), pytest.param(learned, marks=pytest.mark.slow)]
)
def test_the_graph_takes_any_batch_and_condition(make):
    model = make()
    net = model.denoiser.net
    graph = OnnxNet(serialized(stored_graph(model, "fp32", resizable=False)[0]), vars(net))
    for batch in (1, 2, 16):
        x, clock = torch.randn(batch, net.channels, 8, 8), torch.rand(batch) * 999
        y = model.in_turn(batch)
        for given in ((y, None), (None, None), *([(y, torch.arange(batch) % 2 == 0)] if y is not None else [])):
            with torch.no_grad():
                close(graph(x, clock, *given), net(x, clock, *given))
    with pytest.raises(ValueError, match="no gradient through the network"):
        graph(x.requires_grad_(), clock, y)


def test_inputs_are_described():
    assert [tuple(i) for i in inputs(digits())] == [
        ("x", "float32", ("batch", 1, 8, 8)), ("clock", "float32", ("batch",)),
        ("y", "int64", ("batch",)), ("keep", "bool", ("batch",)),
    ]  # fmt: skip
    assert inputs(context(), resizable=True)[0].shape == ("batch", 3, "height", "width")
    assert inputs(context())[2].shape == ("batch", 3) and len(inputs(learned())) == 2


@pytest.mark.slow
def test_previous_predictions_and_hints_are_channels_of_x(tmp_path):
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, self_condition=True, image_channels=2)
    model = pipeline(net, hint=Masked(), sampler=Heun(4))
    image = model.shown(torch.rand(3, 1, 8, 8), range(3))
    found = Pipeline.load(diffusion.export(model, tmp_path / "m.onnx").files[0])
    close(found.sample(3, image=image), model.sample(3, image=image))


@pytest.mark.slow
@pytest.mark.parametrize("storage, size, least, most", [("fp16", 0.75, 1e-5, 2e-3), ("int8", 0.6, 1e-3, 0.1)])
def test_stored_weights_are_smaller_and_their_error_is_told(written, tmp_path, storage, size, least, most):
    made = diffusion.export(digits(), tmp_path / "m.onnx", storage=storage)
    assert made.size < size * written.stat().st_size
    assert least < made.difference.rms < made.difference.largest < most and 0.1 < made.difference.scale < 10
    x, other = (Pipeline.load(f).sample(4, seed=3) for f in (written, made.files[0]))
    assert 0 < (x - other).abs().max() < 20 * most


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_another_process(written, tmp_path):
    code = f"import diffusion, importlib.util as u; s = u.spec_from_file_location('c', {os.path.dirname(__file__)!r} + "
    code += "'/conftest.py'); c = u.module_from_spec(s); s.loader.exec_module(c); "
    code += f"diffusion.export(c.digits(), {str(tmp_path / 'm.onnx')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert (tmp_path / "m.onnx").read_bytes() == written.read_bytes()


def test_the_file_names_no_path_of_the_machine(written):
    assert os.path.dirname(diffusion.__file__).encode() not in written.read_bytes()


def test_commands_open_the_file(written, tmp_path, capsys):
    assert main(["sample", str(written), "--n", "4", "--out", str(tmp_path / "a.npz"), "--sampler", "UniPC"]) == 0
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [0, 1, 2, 3]
    assert main(["film", str(written), "--n", "2", "--frames", "3", "--out", str(tmp_path / "a.gif")]) == 0
    for argv, words in (
        (["describe", written], "describe the run that it was exported from"),
        (["sample", written, "--precision", "bf16"], "computes in float32 on the CPU"),
        (["sample", written, "--compile", "default"], "on the CPU"),
        (["sample", written, "--weights", "raw"], "holds the averaged weights only"),
        (["export", written, "--to", tmp_path / "b.onnx"], "export the run instead"),
    ):
        assert main(list(map(str, argv))) == 2 and words in capsys.readouterr().err


def text(data):
    return metadata(data)[KEY].decode()


def refused(file, *words):
    with pytest.raises(ValueError) as error:
        Pipeline.load(file)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("harm, words", [
    (lambda b: b[:-10], "not an ONNX file of this project, or truncated"),
    (lambda b: b[:100], "not an ONNX file of this project, or truncated"),
    (lambda b: b"", "not an ONNX file of this project"),
    (lambda b: b"PK\3\4" + b, "not an ONNX file of this project"),
    (lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:], "damaged"),
    (lambda b: with_metadata(b, {"more": "x"})[:-80], "not an ONNX file of this project, or truncated"),
    (lambda b: with_metadata(b"", {KEY: text(b)}), "ONNX Runtime cannot open this graph"),
    (lambda b: with_metadata(b, {KEY: text(b).replace("diffusion.noise.discrete.Cosine", "os.system")}),
     "is not a component of a model"),
])  # fmt: skip
def test_a_damaged_or_hostile_file_is_refused(written, tmp_path, harm, words):
    file = tmp_path / "m.onnx"
    file.write_bytes(harm(written.read_bytes()))
    refused(file, words)


def test_a_graph_that_names_other_files_is_refused(written, tmp_path):
    import onnx

    model = onnx.load(written)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    description = text(written.read_bytes())
    del model.metadata_props[:]
    file = tmp_path / "m.onnx"
    file.write_bytes(with_metadata(model.SerializeToString(), {KEY: description}))
    refused(file, "ONNX Runtime cannot open this graph")


class Unexportable(nn.Module):
    """A network whose output depends on a value in a way that no graph expresses."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x, clock, y=None, keep=None):
        return x * self.w if float(x.sum()) > 0 else -x


class Frozen(nn.Module):
    """A network that depends on the size of the batch, for which the exporter takes that of its example."""

    def forward(self, x, clock, y=None, keep=None):
        return x if x.shape[0] == 3 else 2 * x


class Chance(nn.Module):
    """A network with randomness of its own."""

    def forward(self, x, clock, y=None, keep=None):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("net, words", [
    (Unexportable(), "ONNX cannot express this network"),
    (Frozen(), ("differs from the network at a batch of 1", "tracing inferred a static shape")),  # as torch notices
    (Chance(), "leave nothing to chance"),
])  # fmt: skip
def test_networks_that_onnx_cannot_express_are_refused(tmp_path, net, words):
    net.channels = 1
    with pytest.raises(ValueError) as error:
        diffusion.export(pipeline(net), tmp_path / "m.onnx")
    assert any(w in str(error.value) for w in ([words] if isinstance(words, str) else words))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


class Pull:
    """A steering function."""

    def __call__(self, x0, t):
        return -x0


@pytest.mark.parametrize("guidance, words", [
    (lambda: AutoGuidance(digits().denoiser), "needs a second model"),
    (lambda: Steer(Pull()), "needs gradients"),
    (lambda: Interval(Steer(Pull()), 0, 1), "needs gradients"),
])  # fmt: skip
def test_guidances_beyond_the_network_are_refused(tmp_path, guidance, words):
    with pytest.raises(ValueError, match=f"holds one network and no gradient.*{words}"):
        diffusion.export(replace(digits(), guidance=guidance()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_choices_become_the_defaults_of_the_file(tmp_path):
    file = diffusion.export(digits(), tmp_path / "m.onnx", sampler="UniPC", steps=7, scale=2.5).files[0]
    found = Pipeline.load(file)
    assert type(found.sampler) is UniPC and found.sampler.steps == 7 and found.guidance.scale == 2.5


@pytest.mark.slow
def test_engine_onnx_keeps_its_graph_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    model, file = digits(), tmp_path / "m.safetensors"
    diffusion.export(model, file)
    close(Pipeline.load(file, engine="onnx").sample(3), model.sample(3))
    (kept,) = (tmp_path / "cache" / "engines").iterdir()
    written = kept.stat().st_mtime_ns
    Pipeline.load(file, engine="onnx")
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:-100] + bytes(100))
    close(Pipeline.load(file, engine="onnx").sample(3), model.sample(3))  # a damaged graph is made again
    assert len(list(kept.parent.iterdir())) == 1 and kept.stat().st_mtime_ns != written
