"""`diffusion serve`: a web page that samples, films, edits and compares."""

import signal
import sys
from pathlib import Path

from diffusion.commands.options.parser import Parser
from diffusion.exchange.serving.ask import Limits
from diffusion.exchange.serving.server import launch, read_auth
from diffusion.support.paths import run_root


def main(argv: list[str]) -> int:
    parser = Parser("serve", "A web page that samples, films, edits and compares models.")
    add, usual = parser.add_argument, Limits()
    add("runs", nargs="*", type=Path, help="runs, checkpoints, or folders of them (default: the folder of all runs)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every network (default 127.0.0.1)")
    add("--port", type=int, help="default: the first free one from 7860")
    add("--auth", metavar="USER:PASSWORD", help="better in $DIFFUSION_AUTH or a file: other users see command lines")
    add("--auth_file", type=Path, metavar="FILE", help="a file with USER:PASSWORD")
    add("--root_path", metavar="PATH", help="path of a proxy, e.g. /proxy/7860 (default: SageMaker's there)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    add("--models", type=int, default=2, help="models that stay open (default 2)")
    add("--queue", type=int, default=8, help="requests that wait; more are refused (default 8)")
    add("--upload", type=float, default=4.0, metavar="MB", help="size of an uploaded file (default 4)")
    add("--max_n", type=int, default=usual.pictures, help=f"pictures of a request (default {usual.pictures})")
    add("--max_steps", type=int, default=usual.steps, help=f"steps of a request (default {usual.steps})")
    add("--max_seconds", type=float, default=usual.seconds, help=f"of a request (default {usual.seconds:g})")
    words = parser.read(argv)
    auth = read_auth(words.auth, words.auth_file)
    limits = Limits.of(words.max_n, words.max_steps, words.max_seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs = words.runs or [run_root()]
    with launch(
        runs, words.host, words.port, auth, words.root_path, words.queue, round(words.upload * 2**20), words.device,
        words.models, limits, alone=True,
    ) as served:  # fmt: skip
        behind = f" (behind a proxy: {served.root_path}/)" if served.root_path else ""
        print(f"{served.address}{behind}: {len(served.shelf.files())} models; Ctrl-C ends it")
        print(f"the page's commands are typed in {served.shelf.base}", flush=True)
        if auth is None and words.host not in ("127.0.0.1", "localhost", "::1"):
            print(
                "there is no password: everyone who reaches this address can use it; set --auth_file", file=sys.stderr
            )
        served.wait()
    return 0
