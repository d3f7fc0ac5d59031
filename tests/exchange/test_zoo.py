"""Published models: the bundled one, downloads from a local server, and what goes wrong with them."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import yaml

from diffusion.cli import main
from diffusion.exchange.exporting.compact import compact
from diffusion.exchange.importing.pulling import pull
from diffusion.generation.pipeline import Pipeline
from diffusion.support import zoo
from diffusion.support.runs import find_checkpoint


def test_every_entry_is_complete_and_bundled_files_are_unchanged():
    for entry in zoo.entries().values():
        assert entry.about and entry.licence and entry.importer and entry.files
        for file in entry.files:
            assert len(file.sha256) == 64 and file.size > 0
            if not file.address:
                data = (zoo.PACKAGE / file.path).read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def test_the_bundled_digits_are_sampled_by_name(tmp_path):
    """In half precision in the file, in float32 in memory."""
    stored = torch.load(find_checkpoint("zoo:digits"), weights_only=True)["state_dict"]
    assert {v.dtype for v in stored.values()} == {torch.float16}
    pipeline = Pipeline.load("zoo:digits")
    assert {p.dtype for p in pipeline.denoiser.parameters()} == {torch.float32}
    out = tmp_path / "x.npz"
    assert main(["sample", "zoo:digits", "--n", "20", "--steps", "8", "--out", str(out), "--device", "cpu"]) == 0
    with np.load(out) as file:
        images, labels = file["images"][..., 0].astype(float), file["labels"]
    assert images.shape == (20, 8, 8) and 40 < images.mean() < 120
    from diffusion.data import Digits

    x, y = Digits().arrays("train")  # each sample is nearest to the mean of its own class, mostly
    means = torch.stack([x[y == k].double().mean(0) for k in range(10)]).flatten(1)
    nearest = torch.cdist(torch.from_numpy(images).flatten(1), means).argmin(1)
    assert (nearest.numpy() == labels).mean() > 0.7


def test_a_bundled_model_is_resumed_in_a_new_run(tmp_path):
    """Nothing is written into the package."""
    config, kept = zoo.PACKAGE / "zoo" / "digits" / "config.yaml", sorted((zoo.PACKAGE / "zoo").rglob("*"))
    words = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--samples.n", "1", "--gif.n", "1"]
    fit = ["fit", "-c", str(config), "--resume", "zoo:digits", "--out", str(tmp_path), "--data.limit", "128"]
    assert main([*fit, *words]) == 0
    assert (tmp_path / "digits" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert sorted((zoo.PACKAGE / "zoo").rglob("*")) == kept


def test_unknown_and_missing_models_are_named(capsys, tmp_path, monkeypatch):
    assert main(["sample", "zoo:digit", "--out", str(tmp_path / "x.png")]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert main(["pull", "digits"]) == 0 and "zoo:digits" in capsys.readouterr().out
    assert main(["pull"]) == 0 and "1.6 MB" in capsys.readouterr().out


def test_weights_in_half_precision_give_nearly_the_same_prediction(tmp_path):
    full = Pipeline.load("zoo:digits")
    for dtype, error in (("fp16", 1e-3), ("bf16", 1e-2), ("fp32", 0)):
        found = Pipeline.load(compact("zoo:digits", tmp_path / dtype / "x.ckpt", dtype=dtype))
        t = full.denoiser.schedule.level(torch.tensor(0.5, dtype=torch.float64))
        x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
        with torch.no_grad():
            a, b = (p.steered(y, walk=False)(x, t).x0 for p in (found, full))
        assert (a - b).norm() <= error * b.norm()


# --- downloads ----------------------------------------------------------------------------------------------


class Served(ThreadingHTTPServer):
    """A server of one file that can continue downloads and break off."""

    def __init__(self, data: bytes, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.ranges, self.cut, self.asked = data, ranges, 0, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.ckpt"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.data) - start))
        self.end_headers()
        end = self.server.cut if self.server.cut > start else len(self.server.data)
        self.wfile.write(self.server.data[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def data():
    return find_checkpoint("zoo:digits").read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zoo"


@pytest.fixture
def server(data):
    with Served(data) as made:
        yield made
        made.shutdown()


def listed(path, address, data, **more):
    """A list with one model, `small`."""
    file = {"path": "small.ckpt", "address": address, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    fields = {"about": "a model", "licence": "MIT", "importer": "litdiffusion", "files": [file | more]}
    path.write_text(yaml.safe_dump({"small": fields}))
    return path


def test_a_model_is_downloaded_once_and_found_by_name(server, data, cache, tmp_path):
    where = listed(tmp_path / "zoo.yaml", server.address, data)
    with pytest.raises(FileNotFoundError, match="diffusion pull small"):
        zoo.located("zoo:small", where)
    run, said = pull("small", listed=where, tell=lambda line: None), []
    assert run == cache / "small" == zoo.located("zoo:small", where) and not [*cache.glob(".downloads/*")]
    assert Pipeline.load(run).shape == (1, 8, 8)
    assert pull("small", listed=where, tell=said.append) == run and said == ["small: is there already"]
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_is_continued(ranges, data, cache, tmp_path):
    with Served(data, ranges) as server:
        where = listed(tmp_path / "zoo.yaml", server.address, data)
        part = cache / ".downloads" / "small" / "small.ckpt.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(data[:1000])
        pull("small", listed=where, tell=lambda line: None)
        assert server.asked == ["bytes=1000-"]
        assert find_checkpoint(cache / "small").read_bytes() == data
        server.shutdown()


def test_a_connection_that_breaks_off_leaves_what_arrived(server, data, cache, tmp_path):
    where = listed(tmp_path / "zoo.yaml", server.address, data)
    server.cut = len(data) // 2
    pull("small", listed=where, tell=lambda line: None)  # asks again from the middle
    assert server.asked[0] is None and server.asked[1] == f"bytes={len(data) // 2}-"


def test_a_file_with_another_hash_is_refused_and_removed(server, data, cache, tmp_path):
    where = listed(tmp_path / "zoo.yaml", server.address, data, sha256="0" * 64)
    with pytest.raises(ValueError, match="not the published file"):
        pull("small", listed=where)
    assert not [p for p in cache.rglob("*") if p.is_file()]
    larger = listed(tmp_path / "more.yaml", server.address, data, size=1000)
    with pytest.raises(ValueError, match="larger than the 1,000 bytes"):
        pull("small", listed=larger)


def test_offline_the_message_says_where_to_put_the_file(data, cache, tmp_path):
    where = listed(tmp_path / "zoo.yaml", "http://127.0.0.1:9/model.ckpt", data)
    with pytest.raises(ConnectionError, match="save it as") as caught:
        pull("small", listed=where)
    path = cache / ".downloads" / "small" / "small.ckpt"
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="replace it"):
        pull("small", listed=where)
    path.write_bytes(data)
    assert find_checkpoint(pull("small", listed=where, tell=lambda line: None)).read_bytes() == data
