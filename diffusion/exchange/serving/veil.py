"""ASGI middleware: the folder of the served files is not shown, some routes are closed, and its size is bounded."""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]

SHOWN = b"/served-files"  # in place of the folder, in everything that leaves or arrives
TEXTS = (b"application/json", b"text/html", b"text/event-stream")
CLOSED = ("/gradio_api/file=http", "/gradio_api/proxy=", "/gradio_api/deep_link", "/gradio_api/runs", "/monitoring")
ROOM = 512 << 20  # bytes of temporary files
BODY = 1 << 20  # bytes of a JSON request


class Veil:
    """Replaces the path of a folder by a name in responses, and the name by the path in requests.

    Addresses by which Gradio fetches other servers' files, keeps states or shows statistics are answered with 404, and
    JSON of more than 1 MB with 413. Before an upload the oldest files are removed while the folder is above its size.

    Args:
        app: the ASGI application.
        folder: of the served files.
        room: bytes in it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], folder: Path, room: int = ROOM) -> None:
        self.app, self.folder, self.room, self.path = app, folder, room, str(folder).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if any(path.startswith(closed) for closed in CLOSED) or "file=http" in path:
            return await refuse(send, 404, "not found")
        if path.rstrip("/").endswith("/upload") and scope["method"] == "POST":
            tidy(self.folder, self.room)
        headers = dict(scope["headers"])
        if headers.get(b"content-type", b"").startswith(b"application/json"):
            body = await whole(receive)
            if body is None:
                return await refuse(send, 413, "the request is larger than 1 MB")
            receive = again(body.replace(SHOWN, self.path), receive)
        shown, real = SHOWN.decode(), str(self.folder)
        scope = dict(scope) | {"path": scope["path"].replace(f"file={shown}", f"file={real}", 1)}
        await self.app(scope, receive, self.veiled(send))

    def veiled(self, send: Send) -> Send:
        """A `send` that replaces the folder in text."""
        held: Message | None = None
        text = False

        async def sender(message: Message) -> None:
            nonlocal held, text
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                text = any(kind.startswith(known) for known in TEXTS)
                if text:
                    held = message  # until the first part, whose length may change
                    return
            elif text and message["type"] == "http.response.body":
                message = dict(message) | {"body": bytes(message.get("body", b"")).replace(self.path, SHOWN)}
                if held is not None:
                    headers = [pair for pair in held["headers"] if pair[0] != b"content-length"]
                    if not message.get("more_body"):
                        headers.append((b"content-length", str(len(message["body"])).encode()))
                    await send(dict(held) | {"headers": headers})
                    held = None
            await send(message)

        return sender


async def whole(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        if not message.get("more_body"):
            return body


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read already, and then what follows."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiver() -> Message:
        return left.pop() if left else await receive()

    return receiver


async def refuse(send: Send, status: int, text: str) -> None:
    """Answer with an error in plain text."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def tidy(folder: Path, room: int) -> None:
    """Remove the oldest files below a folder until they take at most `room` bytes."""
    files = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.name != ".lock":
                status = path.lstat()
                files.append((status.st_mtime_ns, status.st_size, path))
        except OSError:  # removed meanwhile
            continue
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda file: file[:2]):
        if total <= room:
            return
        path.unlink(missing_ok=True)
        total -= size
