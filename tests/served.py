"""A folder served over http in a thread, for tests of what reads it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Attributes: url; asked, the paths requested so far; break_off, whether a request gets no answer, by its number
    from 1 and its path; broken, the number of requests without one."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url, self.asked = f"http://127.0.0.1:{self.server_port}", []
        self.break_off: Callable[[int, str], bool] = lambda number, path: False
        self.broken, self.turn = 0, threading.Lock()

    def shards(self) -> list[int]:
        """The numbers of the shards requested so far."""
        return [int(path.removeprefix("/shards/")[:6]) for path in self.asked if path.startswith("/shards/")]


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        with self.server.turn:
            self.server.asked.append(self.path)
            breaks = self.server.break_off(len(self.server.asked), self.path)
            self.server.broken += breaks
        if not breaks:
            super().do_GET()

    def log_message(self, *words) -> None:
        pass


def every(n: int) -> Callable[[int, str], bool]:
    """Breaks off every n-th request, but never a file's twice in a row, in whatever order several readers ask."""
    last: set[str] = set()  # the files whose last request broke off

    def breaks(number: int, path: str) -> bool:
        breaks = number % n == 0 and path not in last
        (last.add if breaks else last.discard)(path)
        return breaks

    return breaks


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server of a folder."""
    with Server(Path(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
