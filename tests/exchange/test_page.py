"""page.html: what is in it, what is refused, and where its runtime comes from. Browsers are in test_page_browser.py."""

import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import tarfile
from dataclasses import replace

import pytest

import diffusion
from diffusion.cli import main
from diffusion.denoiser.hints import Masked
from diffusion.exchange.exporting import npm, page_file
from diffusion.exchange.exporting.onnx_file import stored_graph
from diffusion.exchange.exporting.page_file import BINARY, FOLDER, LIBRARY, as_constant
from diffusion.exchange.exporting.page_model import as_json, described
from diffusion.guidance import APG, AutoGuidance, Clamp, ClassifierFree, Interval, Plain, Steer
from diffusion.nets import AttentionUNet, ContextUNet
from diffusion.samplers import DDPM, DEIS, DPMSolver, EulerAncestral, Heun, UniPC
from diffusion.support.scaling import Scaling
from tests.served import served

from .conftest import context, digits, learned, pipeline

pytest.importorskip("onnxruntime", reason="pip install -e '.[test]'")
JS = """var a=location.origin,u=import.meta.url;export{b as InferenceSession,a as Tensor,c as env};
//# sourceMappingURL=x"""


def archive_of(files):
    """An npm archive, the same at every call."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return data.getvalue()


GRAPHS = {}


def known_graph(pipeline, storage, resizable=True):
    """`stored_graph`, of the first network of each kind."""
    key = (type(pipeline.denoiser.net), storage)
    if key not in GRAPHS:
        GRAPHS[key] = stored_graph(pipeline, storage, resizable)
    return GRAPHS[key]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the real one, in a registry on this machine; the cache folder is empty.

    The graph of a network is made once for all tests; test_onnx.py shows that it is the same each time.
    """
    monkeypatch.setattr(page_file, "stored_graph", known_graph)
    data = archive_of({LIBRARY: JS.encode(), BINARY: b"\0asm"})
    made = npm.Package("onnxruntime-web", "1.0.0", len(data), npm.integrity(data))
    monkeypatch.setattr(npm, "ONNXRUNTIME", made)
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "registry" / made.name / "-"
    folder.mkdir(parents=True)
    (folder / made.file).write_bytes(data)
    with served(tmp_path / "registry") as server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
        yield made, server


def element(page, name):
    """The text of an element of the page, by its id or its tag."""
    return re.search(rf"<(?:{name}|\w+[^>]* id=\"{name}\")>(.*?)</", page, re.S)[1]


def test_a_page_is_one_file_with_all_parts(package, tmp_path):
    made = diffusion.export(digits(), tmp_path / "page.html")
    page = made.files[0].read_text()
    model = json.loads(element(page, "model"))
    assert made.format == "page" and model == json.loads(json.dumps(described(digits())))
    for name, start in (("network", b"\x08"), ("runtime", b"\0asm"), ("worker", b'"use strict";'), ("notices", b"")):
        assert gzip.decompress(base64.b64decode(element(page, name))).startswith(start), name
    assert "Copyright (c) Microsoft Corporation" in page and "Licensed" not in element(page, "title")
    assert "{{" not in page.replace("${{", "") and str(tmp_path) not in page and "http://" not in page
    assert [p.name for p in tmp_path.glob("*.html")] == ["page.html"] and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_page_is_the_same_at_every_call(package, tmp_path):
    first, again = (diffusion.export(context(), tmp_path / k / "page.html").files[0].read_bytes() for k in "ab")
    assert first == again and len(package[1].asked) == 1


def test_the_policy_allows_its_own_programs_alone(package, tmp_path):
    page = diffusion.export(digits(), tmp_path / "page.html").files[0].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    module = re.search(r'<script type="module">(.*?)</script>', page, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    for text, rule in ((module, "script-src 'wasm-unsafe-eval' "), (style, "style-src ")):
        assert f"{rule}'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe-inline" not in policy
    assert not re.search(r"<[^>]* (on\w+|style)=", page.replace(module, ""))  # neither would be allowed


@pytest.mark.slow
def test_names_cannot_leave_their_place(package, tmp_path):
    names = ("</script><script>alert(1)</script>", '"quotes" & \\ <!-- \u2028', "{{app}}")
    model = replace(context(), class_names=names)
    page = diffusion.export(model, tmp_path / "<b>.html").files[0].read_text()
    assert json.loads(element(page, "model"))["names"] == list(names)
    assert page.count("alert(1)") == 1 and page.count("</script>") == 6
    assert html.escape("<b>") in element(page, "title") and "<!--" not in page and "\u2028" not in page
    assert json.loads(element(page, "model"))["keys"] == ["0", "1", "2"]  # in the command line


def test_our_programs_can_stand_in_a_page():
    for path in FOLDER.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300 and "</script" not in text and "<!--" not in text and text.isascii()


@pytest.mark.slow
def test_storage_makes_a_page_smaller(package, tmp_path):
    sizes = {}
    for storage in ("fp32", "fp16", "int8"):
        made = diffusion.export(digits(), tmp_path / "page.html", storage=storage)
        sizes[storage] = len(element(made.files[0].read_text(), "network"))
        assert (made.difference is None) == (storage == "fp32")
    assert sizes["fp32"] > sizes["fp16"] > sizes["int8"]


def test_a_large_page_is_announced(package, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.exchange.exporting.page_file.LARGE", 1000)
    assert "--storage fp16 or int8" in diffusion.export(digits(), tmp_path / "page.html").notes[0]
    monkeypatch.setattr("diffusion.exchange.exporting.page_file.LIMIT", 1000)
    with pytest.raises(ValueError, match="--storage int8, or export to .onnx"):
        diffusion.export(digits(), tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_deep_data_are_shown_in_eight_bits(package, tmp_path):
    scaling = Scaling("float32", (0.0,), (2.0,), bounded=False)
    made = diffusion.export(replace(digits(), scaling=scaling), tmp_path / "page.html")
    assert "8 bits" in made.notes[0] and len(described(made.source.pipeline)["colours"]) == 256
    assert described(replace(context(), bands=(3,)))["bands"] == [2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sampler": DEIS(5)}, "export with --sampler DDIM"),
        ({"sampler": Heun(5, churn=1.0)}, "--churn 0"),
        ({"sampler": DPMSolver(5, order=3)}, "--order 2"),
        ({"sampler": DDPM(5, "learned")}, "--variance small"),
        ({"guidance": APG(2.0)}, "APG: the page has classifier-free guidance"),
        ({"guidance": Interval(APG(2.0), 0, 1)}, "APG"),
        ({"guidance": Steer(lambda x, t: x, 1.0, guidance=Plain())}, "gradients"),
        ({"guidance": AutoGuidance(digits().denoiser)}, "second model"),
        ({"hint": Masked()}, "conditioned on an image"),
        ({"clamp": type("Odd", (Clamp,), {})()}, "Odd"),
        ({"shape": (1, 3, 3)}, "9 numbers"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_models_that_do_not_fit_are_refused(change, reason, tmp_path):
    with pytest.raises(ValueError, match=f"a page cannot sample this model: .*{re.escape(reason)}"):
        diffusion.export(replace(digits(), **change), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_networks_that_do_not_fit_are_refused():
    hinted = pipeline(AttentionUNet(1, (8, 16), heads=2, attention=1, image_channels=2))
    wide = pipeline(ContextUNet(3, 16, 2, context_dim=65))
    for model, reason in ((hinted, "image"), (wide, "at most 64; its context has 65")):
        with pytest.raises(ValueError, match=reason):
            described(model)


def test_the_models_own_choices_are_the_pages_defaults():
    found = described(replace(digits(), sampler=EulerAncestral(12, eta=0.4, grid="leading")))
    assert found["sampler"] == "DDIM" and found["steps"] == 12 and found["samplers"]["DDIM"]["options"] == {"eta": 0.4}
    assert found["samplers"]["Heun"]["words"] == ["--grid leading"] and "12" in found["walks"]
    assert described(learned())["samplers"]["DDPM"]["words"] == ["--variance learned"]
    guided = described(replace(digits(), guidance=Interval(ClassifierFree(3.0, rescale=0.5), 0.1, 4)))["guidance"]
    assert guided["words"] == ["--rescale 0.5", "--interval 0.1,4"] and guided["scale"] == 3
    assert found["number"] == 10 and len(found["levels"]) == 1001 and len(found["walks"]["12"]) == 13


def test_text_for_a_page_is_json():
    value = {"</script>": ["<!--", "&amp;", "\u2028", 'a"b'], "n": [0.1, 1e-300, None, True]}
    text = as_json(value)
    assert json.loads(text) == value and not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError):
        as_json(float("inf"))


# --- the registry -----------------------------------------------------------------------------------------


def test_the_package_is_downloaded_once(package):
    made, server = package
    assert npm.archive(made) == npm.archive(made)
    assert server.asked == ["/onnxruntime-web/-/onnxruntime-web-1.0.0.tgz"]
    assert (npm.cache_root() / "npm" / made.file).is_file()


@pytest.mark.parametrize("change", [lambda b: b[:-1] + b"x", lambda b: b[:-1], lambda b: b + b"x" * 2**20])
def test_another_file_than_the_pinned_is_refused(package, tmp_path, change):
    made, server = package
    file = tmp_path / "registry" / made.name / "-" / made.file
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"wanted [\d,]+ bytes of sha512-.*nothing was kept; .*NPM_CONFIG_REGISTRY"):
        diffusion.export(digits(), tmp_path / "page.html")
    assert not (npm.cache_root() / "npm").exists() and not (tmp_path / "page.html").exists()


def test_a_damaged_file_in_the_cache_is_replaced(package):
    made, _ = package
    kept = npm.cache_root() / "npm" / made.file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    assert made.matches(npm.archive(made)) and made.matches(kept.read_bytes())


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "https://me:secret@127.0.0.1:9/npm/", "nowhere"])
def test_without_a_network_it_says_where_to_put_the_file(package, tmp_path, monkeypatch, capsys, address):
    made, _ = package
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
    kept = npm.cache_root() / "npm" / made.file
    with pytest.raises(ConnectionError) as raised:
        diffusion.export(digits(), tmp_path / "page.html")
    text = str(raised.value)
    assert f"https://registry.npmjs.org/onnxruntime-web/-/{made.file} elsewhere and put it at {kept}" in text
    assert "secret" not in text and "\n" not in text
    kept.parent.mkdir(parents=True)
    kept.write_bytes((tmp_path / "registry" / made.name / "-" / made.file).read_bytes())
    assert diffusion.export(digits(), tmp_path / "page.html").size > 1000


def test_the_registry_is_that_of_npms_configuration(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().startswith("npm_config")]:
        monkeypatch.delenv(name)
    file = tmp_path / "npmrc"
    monkeypatch.setenv("npm_config_userconfig", str(file))
    assert npm.registry() == "https://registry.npmjs.org/"
    monkeypatch.setenv("PLACE", "inside")
    file.write_text('; a comment\n@mine:registry=https://other/\nregistry = "https://${PLACE}/npm"\n')
    assert npm.registry() == "https://inside/npm/"
    monkeypatch.setenv("npm_config_registry", "http://first")
    assert npm.registry() == "http://first/"


def test_the_library_becomes_a_script():
    assert as_constant(JS) == (
        '"use strict";var a=void 0,u=self.location.href;\nconst ort={InferenceSession:b,Tensor:a,env:c};\n'
    )
    for other in (JS.replace("origin", "href"), JS.replace(" as env", ""), JS.replace("export", "")):
        with pytest.raises(ValueError, match="another form than expected"):
            as_constant(other)


def test_a_page_of_unipc_has_its_steps_and_grid(package, tmp_path):
    made = diffusion.export(replace(digits(), sampler=UniPC(9, grid="karras")), tmp_path / "page.html")
    model = json.loads(element((tmp_path / "page.html").read_text(), "model"))
    assert model == described(replace(digits(), sampler=DPMSolver(9, grid="karras")))
    assert any("no UniPC; it begins with DPMSolver, 9 steps" in note for note in made.notes)


@pytest.mark.slow
def test_the_command_exports_a_page(package, tmp_path, capsys):
    run = diffusion.export(digits(), tmp_path / "m.safetensors").files[0]
    assert main(["export", str(run), "--to", str(tmp_path / "p.html"), "--storage", "fp16", "--steps", "7"]) == 0
    printed = capsys.readouterr().out
    assert (
        "p.html: " in printed and "float32" in printed and f"next: open {tmp_path / 'p.html'} in a browser" in printed
    )
    assert json.loads(element((tmp_path / "p.html").read_text(), "model"))["steps"] == 7
    assert main(["export", str(run), "--to", str(tmp_path / "q.html"), "--sampler", "DEIS"]) != 0
    assert "a page cannot sample this model: DEIS" in capsys.readouterr().err
