"""The server of the page: its address, its password, its folder of temporary files, and its end."""

import html
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from diffusion.exchange.serving.answers import Desk
from diffusion.exchange.serving.ask import Limits
from diffusion.exchange.serving.shelf import Shelf
from diffusion.exchange.serving.veil import Veil
from diffusion.support.lock import Lock
from diffusion.support.paths import home, tensorboard_address

PREFIX = "diffusion-serve-"
PORTS = range(7860, 7960)
PIXELS = 1 << 24  # Pillow refuses pictures of twice as many
OURS = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED")


class Workspace:
    """The folder of the temporary files of all servers of this process, while there is one.

    Gradio reads its place from the environment, also while a server runs.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []  # the same one for each server
        self.before: dict[str, str | None] = {}
        self.lock: Lock | None = None

    def enter(self) -> Path:
        """The folder for one more server; what killed servers left is removed before the first."""
        if not self.folders:
            sweep()
            folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            self.lock, self.before = Lock(folder), {name: os.environ.get(name) for name in OURS}
            os.environ.update(dict(zip(OURS, (str(folder), str(folder / "examples"), "False"), strict=True)))
            self.folders.append(folder)
        else:
            self.folders.append(self.folders[0])
        return self.folders[0]

    def leave(self) -> None:
        """Remove the folder after the last server."""
        folder = self.folders.pop()
        if not self.folders:
            for name, value in self.before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            self.lock.release()
            shutil.rmtree(folder, ignore_errors=True)


WORKSPACE = Workspace()


def sweep() -> None:
    """Remove the folders that killed servers left."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is in use, or another user's
            status = old.lstat()
            aged = time.time() - status.st_mtime > 60  # a newer one may belong to a server that is starting
            if old.is_dir() and not old.is_symlink() and status.st_uid == os.getuid() and aged:
                Lock(old).release()
                shutil.rmtree(old, ignore_errors=True)


class Served:
    """A running server.

    Attributes:
        address: of the page on this machine.
        root_path: path of the page behind a proxy; "" without one.
        shelf: the models that it offers.
    """

    def __init__(self, page: Any, shelf: Shelf, folder: Path, address: str, root_path: str) -> None:
        self.page, self.shelf, self.folder = page, shelf, folder
        self.address, self.root_path, self.closed = address, root_path, False

    def wait(self) -> None:
        """Return when the server has ended."""
        while self.page.is_running:
            time.sleep(0.2)

    def close(self) -> None:
        """End the server, and remove its temporary files."""
        if not self.closed:
            self.closed = True
            with suppress(Exception):  # it may have ended already
                self.page.close(verbose=False)
            WORKSPACE.leave()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """The page below a notebook's cell."""
        where = html.escape(f"{self.root_path}/" if self.root_path else self.address)
        return f'<iframe src="{where}" width="100%" height="900" style="border:0" title="LitDiffusion"></iframe>'


def launch(
    runs: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    root_path: str | None = None,
    queue: int = 8,
    upload: int = 4 << 20,
    device: str = "auto",
    keep: int = 2,
    limits: Limits = Limits(),
    alone: bool = False,
) -> Served:
    """Start the server and return; it runs until `close`.

    Args:
        runs: run directories, experiments, checkpoint files, or folders of them; nothing else is offered.
        host: address that it listens on; 0.0.0.0 is every network.
        port: None is the first free one from 7860.
        auth: user and password.
        root_path: path by which a proxy reaches it, such as /proxy/7860; None is SageMaker's on SageMaker.
        queue: requests that wait; more are refused.
        upload: bytes of an uploaded file.
        device, keep: see `Shelf`.
        limits: of one request.
        alone: the process does nothing else, so that it may refuse all pictures of more than 32 million pixels.
    Raises:
        ModuleNotFoundError: Gradio is not installed.
        FileNotFoundError: there is no checkpoint.
        ValueError: a number out of range, or a port that is in use.
    """
    if find_spec("gradio") is None:
        raise ModuleNotFoundError("serve needs Gradio; install it with: pip install 'litdiffusion[ui]'")
    if queue < 1 or upload < 1024:
        raise ValueError(f"queue must be at least 1 and upload at least 1024 bytes, got {queue} and {upload}")
    shelf = Shelf(runs, device, keep)
    port = free_port(host, port)
    root_path = proxied(port) if root_path is None else root_path.rstrip("/")
    if root_path and not re.fullmatch(r"(https?://[\w.:-]+)?(/[\w.~%-]+)*", root_path):
        raise ValueError(f"root_path {root_path}: wanted a path such as /proxy/{port}")
    folder = WORKSPACE.enter()
    try:
        from starlette.middleware import Middleware

        from diffusion.exchange.serving.page import APPEARANCE, build

        if alone:
            Image.MAX_IMAGE_PIXELS = PIXELS
        page = build(Desk(shelf, limits), folder)
        page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
        page.launch(
            server_name=host, server_port=port, auth=auth, root_path=root_path or None, max_file_size=upload,
            prevent_thread_lock=True, quiet=True, inline=False, inbrowser=False, share=False, ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, footer_links=[], show_error=False,
            allowed_paths=[], blocked_paths=[str(top) for top in shelf.tops],
            app_kwargs={"middleware": [Middleware(Veil, folder=folder)], "docs_url": None},
            **APPEARANCE,
        )  # fmt: skip
    except BaseException:
        WORKSPACE.leave()
        raise
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return Served(page, shelf, folder, f"http://{name}:{port}/", root_path)


def free_port(host: str, port: int | None) -> int:
    """A port that is free, or the given one if it is.

    Raises:
        ValueError: the port is in use, or the address is not this machine's.
    """
    for one in [port] if port is not None else PORTS:
        if not 0 < one < 65536:
            raise ValueError(f"--port {one}: wanted a number from 1 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
                probe.bind((host, one))
                probe.listen()
                return one
            except OSError as error:
                reason = error.strerror
    raise ValueError(f"port {one} of {host} cannot be used ({reason}); choose another one with --port or --host")


def proxied(port: int) -> str:
    """The path by which SageMaker's proxy reaches a port; "" elsewhere."""
    return urlsplit(tensorboard_address(port)).path.rstrip("/") if home() in ("notebook instance", "Studio") else ""


def read_auth(given: str | None = None, file: str | Path | None = None) -> tuple[str, str] | None:
    """User and password from text USER:PASSWORD, a file, or $DIFFUSION_AUTH; None without any of them.

    Raises:
        ValueError: the text is of another form.
    """
    if given is None and file is None and not os.environ.get("DIFFUSION_AUTH"):
        return None
    text = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("DIFFUSION_AUTH", "")
    text = text if given is None else given
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ValueError("--auth: wanted USER:PASSWORD, with neither of them empty")
    return user, password
