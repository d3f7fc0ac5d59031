"""The page by its client: what it returns, and what it refuses. Needs Gradio: pip install 'litdiffusion[ui]'."""

import base64
import http.client
import json
import os
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `ui` is not installed")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from diffusion import notebook
from diffusion.cli import main
from diffusion.exchange.serving.ask import Limits
from diffusion.exchange.serving.server import launch, read_auth
from diffusion.exchange.serving.veil import tidy

DIGITS, SPRITES = "runs/digits/version_0", "runs/sprites/version_0"
LIMITS = Limits(pictures=16, steps=100, seconds=600)
PATIENT = {"timeout": 600}  # seconds; a client's own are 5


@pytest.fixture(scope="module")
def served(folder):
    before = Path.cwd()
    os.chdir(folder)
    with launch(["runs"], device="cpu", queue=8, upload=1 << 20, limits=LIMITS) as server:
        yield server
    os.chdir(before)
    assert not server.folder.exists()


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    return Client(served.address, verbose=False, download_files=folder, httpx_kwargs=dict(PATIENT))


def get(served, path, method="GET", body=None, headers=None):
    """Status and body of an answer; the path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(served.address).netloc, timeout=600)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def post(served, path, value, **headers):
    return get(served, path, "POST", json.dumps(value), {"Content-Type": "application/json"} | headers)


def sample(client, **given):
    return client.predict(**{"image": None, "model": DIGITS, "n": 2, "steps": 3} | given, api_name="/sample")


def test_pictures_their_command_and_its_file(client, folder, tmp_path, monkeypatch):
    pictures, status, command, files = sample(client, condition="Chosen classes", labels=["3", "7"], seed=4)
    assert len(pictures) == 2 and np.asarray(Image.open(pictures[0]["image"])).shape == (8, 8)
    assert status.startswith("2 pictures in ") and "DDIM, 3 steps, 3 network evaluations" in status
    assert command == f"diffusion sample {DIGITS} --n 2 --labels 3,7 --steps 3 --seed 4 --out grid.png"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(folder / "runs")
    assert main([*shlex.split(command)[1:], "--device", "cpu"]) == 0
    assert Path("grid.png").read_bytes() == Path(files[0]).read_bytes()


def test_a_mix_of_a_context_model(client):
    *_, command, _ = sample(client, model=SPRITES, condition="A mix", mix0=0.5, mix2=1.0)
    assert "--context hero=0.5,spell=1" in command


def test_an_edit_and_the_files_that_its_command_reads(client, tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    layer = Image.new("RGBA", (64, 64))
    layer.paste((255, 0, 0, 255), (0, 0, 32, 64))
    layer.save(tmp_path / "b.png")
    drawing = {
        "background": handle_file(tmp_path / "a.png"),
        "layers": [handle_file(tmp_path / "b.png")],
        "composite": None,
    }
    pictures, _, command, files = client.predict(
        image=None, model=DIGITS, steps=3, results=2, editor=drawing, api_name="/edit"
    )
    assert len(pictures) == 2 and "--input input.png --mask mask.png" in command
    assert [Path(f).name for f in files] == ["inpaint.png", "input.png", "mask.png"]
    assert (np.asarray(Image.open(files[2])) == [255] * 4 + [0] * 4).all()


def test_a_film(client):
    image, video, *_, command, files = client.predict(image=None, model=DIGITS, steps=3, film_n=2, api_name="/film")
    assert Path(files[0]).read_bytes()[:3] == b"GIF" and command.endswith("--out denoising.gif")


def test_a_comparison(client):
    *_, words, files = client.predict(image=None, model=DIGITS, compare_n=2, steps_a=2, steps_b=4, api_name="/compare")
    assert "times as fast" in words and [Path(f).name for f in files] == ["a.png", "b.png"]


# --- hostile inputs ---------------------------------------------------------------------------------------

BAD = [
    ({"model": "../outside/version_0"}, "not in the list"),
    ({"model": "/etc/passwd"}, "not in the list"),
    ({"n": 1e30}, "greater than maximum"),
    ({"steps": 10**9}, "greater than maximum"),
    ({"seed": 2**70}, ""),
    ({"seed": "1; ls"}, ""),
    ({"sampler": "os.system"}, "not in the list"),
    ({"condition": "Chosen classes", "labels": ["<script>alert(1)</script>"]}, "&lt;script&gt;"),
    ({"condition": "Chosen classes", "labels": ["/etc/passwd"]}, "labels are 0 .. 9"),
    ({"condition": "Chosen classes", "labels": ["x" * 100000]}, "labels are 0 .. 9"),
    ({"condition": "Chosen classes", "labels": []}, "choose at least one"),
]


@pytest.mark.parametrize("given, said", BAD, ids=range(len(BAD)))
def test_a_bad_request_gets_one_line(given, said, client, folder, served):
    with pytest.raises(AppError) as error:
        sample(client, **given)
    text = str(error.value)
    assert said in text and "\n" not in text and len(text) < 700 and "<script" not in text
    assert str(folder) not in text and str(served.folder) not in text
    assert sample(client)[0]  # the server lives on


def files_of(served, folder):
    """Addresses of files that are not to be read."""
    secret, out = folder / "secret.txt", folder / "runs/secret.txt"
    checkpoint = folder / "runs/digits/version_0/checkpoints/last.ckpt"
    paths = [secret, out, checkpoint, "/etc/passwd", f"{served.folder}/../../etc/passwd", "runs/secret.txt"]
    paths += ["/served-files/../../etc/passwd", "/served-files/%2e%2e/%2e%2e/etc/passwd", "/served-files/.lock/../.."]
    paths += ["file:///etc/passwd", "~/.bashrc", str(Path(__file__)), "runs/leads_out/version_0/checkpoints/last.ckpt"]
    found = [f"/gradio_api/file={path}" for path in paths] + [f"/gradio_api/file/{path}" for path in paths]
    found += [
        "/static/../../../../etc/passwd",
        "/assets/../../../../../etc/passwd",
        "/gradio_api/proxy=http://x.hf.space",
    ]
    return [*found, "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/file=https%3A//example.org"]


def test_no_file_outside_is_read(served, folder):
    for path in files_of(served, folder):
        status, body = get(served, path)
        assert status in (400, 403, 404), path
        assert b"a secret" not in body and b"root:" not in body, path


def test_a_link_in_the_served_folder_leads_nowhere(served, folder):
    (served.folder / "link.txt").symlink_to(folder / "secret.txt")
    status, body = get(served, "/gradio_api/file=/served-files/link.txt")
    assert status == 403 and b"a secret" not in body


def test_files_of_the_machine_are_no_inputs(served, folder):
    config = json.loads(get(served, "/config")[1])
    edit = next(d for d in config["dependencies"] if d["api_name"] == "edit")
    for path in ("/etc/passwd", str(folder / "secret.txt"), "/served-files/../../etc/passwd"):
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [next(c for c in config["components"] if c["id"] == k)["props"].get("value") for k in edit["inputs"]]
        place = [next(c for c in config["components"] if c["id"] == k)["type"] for k in edit["inputs"]]
        data[place.index("imageeditor")] = {"background": picture, "layers": [], "composite": None}
        said = post(served, "/gradio_api/call/edit", {"data": data})[1]
        said = get(served, f"/gradio_api/call/edit/{json.loads(said)['event_id']}")[1]
        assert said.startswith(b"event: error") and b"root:" not in said and path.encode() not in said


def test_no_path_of_the_machine_is_shown(served, folder, tmp_path):
    home, here = str(Path.home()), str(Path(notebook.__file__).parent)
    session = {"session_hash": "abc", "fn_index": 0, "data": []}
    seen = [get(served, path)[1] for path in ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/none")]
    content = base64.b64encode(b"x").decode()
    body = f'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n{content}\r\n--b--\r\n'
    seen.append(get(served, "/gradio_api/upload", "POST", body, {"Content-Type": "multipart/form-data; boundary=b"})[1])
    assert b"/served-files/" in seen[-1]
    for call in ("sample", "edit", "none"):
        seen.append(post(served, f"/gradio_api/call/{call}", {"data": ["/etc/x"]})[1])
        if b"event_id" in seen[-1]:
            seen.append(get(served, f"/gradio_api/call/{call}/{json.loads(seen[-1])['event_id']}")[1])
    seen.append(post(served, "/gradio_api/queue/join", session)[1])
    for hidden in (str(folder), str(served.folder), home + "/", here, "site-packages", "Traceback"):
        assert not [body for body in seen if hidden.encode() in body], hidden


def test_a_large_upload_and_a_large_request_are_refused(served):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(50 << 20) + b"\r\n--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        status, _ = get(served, "/gradio_api/upload", "POST", body, kind)
    except (BrokenPipeError, ConnectionResetError):  # it closed the connection before the end
        status = 413
    assert status == 413
    assert sum(f.stat().st_size for f in served.folder.rglob("*") if f.is_file()) < 10 << 20
    assert post(served, "/gradio_api/queue/join", {"data": "x" * (2 << 20)})[0] == 413


def test_a_picture_with_a_wrong_content_is_refused(client, tmp_path):
    (tmp_path / "a.png").write_text("<html><script>alert(1)</script>")
    drawing = {"background": handle_file(tmp_path / "a.png"), "layers": [], "composite": None}
    with pytest.raises(AppError):
        client.predict(image=None, model=DIGITS, editor=drawing, api_name="/edit")


@pytest.mark.slow
def test_twenty_clients_at_once_are_served_or_told_to_wait(served):
    barrier = threading.Barrier(20)

    def visit(k):
        try:
            client = Client(served.address, verbose=False, download_files=False, httpx_kwargs=dict(PATIENT))
            barrier.wait(600)
            return len(sample(client, n=16, steps=50, seed=k)[0])
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(visit, range(20)))
    done, refused = [f for f in found if f == 16], [f for f in found if f != 16]
    assert len(done) >= 8 and all("ueue" in text and "\n" not in text for text in refused), found


# --- the server ---------------------------------------------------------------------------------------------


def test_a_password_protects_the_page_and_its_files(folder):
    with launch([folder / "runs"], device="cpu", auth=("me", "secret")) as server:
        assert get(server, "/gradio_api/info")[0] == 401 and get(server, "/config")[0] == 401
        assert post(server, "/gradio_api/queue/join", {"fn_index": 0, "data": [], "session_hash": "a"})[0] == 401
        with pytest.raises(Exception, match="Could not login"):
            Client(server.address, verbose=False, auth=("me", "wrong"), httpx_kwargs=dict(PATIENT))
        known = {"auth": ("me", "secret"), "httpx_kwargs": dict(PATIENT)}
        client = Client(server.address, verbose=False, download_files=False, **known)
        assert len(sample(client, model="runs/digits/version_0")[0]) == 2


def test_behind_a_proxy_and_in_a_cell(folder, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_PROXY_URL", "/user/me/proxy/%PORT%/")
    with notebook.serve(folder / "runs", device="cpu") as server:
        port = urlsplit(server.address).port
        assert server.root_path == f"/user/me/proxy/{port}"
        assert f'src="/user/me/proxy/{port}/"' in server._repr_html_()
        assert f"/user/me/proxy/{port}".encode() in get(server, "/")[1]


def test_ports_and_passwords_are_checked(served, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="choose another one with --port"):
        launch(["runs"], port=urlsplit(served.address).port)
    (tmp_path / "auth").write_text("me:pass:word\n")
    assert read_auth(file=tmp_path / "auth") == ("me", "pass:word")
    monkeypatch.setenv("DIFFUSION_AUTH", "you:x")
    assert read_auth() == ("you", "x") and read_auth("a:b") == ("a", "b")
    for text in ("nobody", ":x", "x:", ""):
        with pytest.raises(ValueError, match="USER:PASSWORD"):
            read_auth(text)


def test_the_oldest_files_make_room(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{k}", (k, k))
    tidy(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
