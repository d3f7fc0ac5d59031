"""page.html: one file that samples in a browser, without a server and without a network.

It has the network as ONNX, ONNX Runtime as WebAssembly, and the programs of `exchange/page`, which are our samplers
again in JavaScript. A content security policy allows these programs by their hashes, and no request.
"""

import gzip
import hashlib
import html
import re
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

from diffusion import __version__
from diffusion.exchange.exporting import npm
from diffusion.exchange.exporting.facts import Source
from diffusion.exchange.exporting.onnx_file import Difference, Storage, serialized, stored_graph
from diffusion.exchange.exporting.page_model import as_json, described
from diffusion.samplers import DPMSolver, UniPC
from diffusion.support.extras import extra
from diffusion.support.files import atomic

FOLDER = Path(__file__).resolve().parents[1] / "page"
WORKER = ("unpack.js", "random.js", "sampler.js", "pictures.js", "gif.js", "worker.js")
APP = ("unpack.js", "sampler.js", "pictures.js", "text.js", "form.js", "app.js")
LIBRARY, BINARY = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
USED = ("InferenceSession", "Tensor", "env")  # of ONNX Runtime's library
LARGE = 50 * 2**20  # bytes of a page that is slow to open
LIMIT = 400 * 2**20  # bytes of the packed network: browsers limit a text to 512 MiB
POLICY = (
    "default-src 'none'; script-src 'wasm-unsafe-eval' {script}; worker-src blob:; style-src {style}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def write_page(source: Source, to: Path, storage: Storage = "fp32") -> tuple[list[Path], Difference | None, list[str]]:
    """Write the page; return its file, the error that the storage causes, and what its user should know.

    Raises:
        ConnectionError, ImportError: what it is made of is missing.
        ValueError: the page cannot sample this model, for the reason given.
    """
    pipeline, notes = source.pipeline, []
    if type(pipeline.sampler) is UniPC:
        nearest = DPMSolver(pipeline.sampler.steps, grid=pipeline.sampler.grid)
        pipeline = replace(pipeline, sampler=nearest)
        notes.append(f"the page has no UniPC; it begins with DPMSolver, {nearest.steps} steps on the same grid")
    model = as_json(described(pipeline))  # refuses before the long work
    runtime, library = parts()
    graph, error = stored_graph(pipeline, storage, resizable=False)
    network = packed(serialized(graph))
    if len(network) > LIMIT:
        raise ValueError(
            f"the packed network has {len(network) / 2**20:,.0f} MB, and browsers open at most {LIMIT / 2**20:,.0f}; "
            "give --storage int8, or export to .onnx"
        )
    net = pipeline.denoiser.net
    count = sum(p.numel() for p in net.parameters())
    C, H, W = pipeline.shape
    about = (
        f"A diffusion model ({type(net).__name__}, {count:,} parameters, {C} x {H} x {W}) that runs in this page: it "
        "starts from noise and removes it, step by step."
    )
    text = assembled(
        title=f"Pictures from noise: {to.stem}", about=about, model=model, network=network, runtime=packed(runtime),
        worker=packed(worker(library).encode()),
    )  # fmt: skip
    with atomic(to) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    if pipeline.scaling.dtype != "uint8":
        notes.append(f"the page shows pictures in 8 bits; the data's {pipeline.scaling.dtype} are not in it")
    if len(text) > LARGE:
        smaller = {"fp32": "; --storage fp16 or int8 makes it smaller", "fp16": "; --storage int8 makes it smaller"}
        notes.append(
            f"a network of this size is slow in a browser, which says how long the pictures take; opening "
            f"{len(text) / 2**20:,.0f} MB takes a while too{smaller.get(storage, '')}"
        )
    return [to], error, notes


def parts() -> tuple[bytes, str]:
    """ONNX Runtime's WebAssembly, and its library as the text of a script."""
    library, runtime = npm.members(npm.archive(npm.ONNXRUNTIME), LIBRARY, BINARY)
    return runtime, as_constant(library.decode("utf-8"))


def as_constant(library: str) -> str:
    """The library, a module, as a script with its exports in a constant `ort`.

    Chromium opens no worker of type module in a page from file://.

    Raises:
        ValueError: it is not of the form that this program knows.
    """
    body, _, exports = re.sub(r"//# sourceMappingURL.*", "", library).rpartition("export{")
    names = dict(reversed(pair.split(" as ")) for pair in exports.partition("}")[0].split(",") if " as " in pair)
    # The origin of a file is the text "null" in Firefox, which the library takes for an address.
    if body.count("location.origin") != 1 or not all(name in names for name in USED):
        raise ValueError(f"{npm.ONNXRUNTIME.file}: {LIBRARY} has another form than expected")
    exported = ",".join(f"{name}:{names[name]}" for name in USED)
    body = body.replace("location.origin", "void 0").replace("import.meta.url", "self.location.href")
    return f'"use strict";{body}\nconst ort={{{exported}}};\n'


def program(*names: str) -> str:
    """Our programs in one text."""
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


def worker(library: str) -> str:
    """The worker's script: ours in a block, so that no name is the library's."""
    return f"{library}{{\n{program(*WORKER)}}}\n"


def packed(data: bytes) -> str:
    """Base64 of gzip, the same at every call."""
    return b64encode(gzip.compress(data, 9, mtime=0)).decode()


def notices() -> str:
    """The notices of third parties that are in ONNX Runtime, as its Python package has them."""
    file = Path(extra("onnxruntime", "export", "the page").__file__).parent / "ThirdPartyNotices.txt"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    return "https://github.com/microsoft/onnxruntime/blob/main/ThirdPartyNotices.txt\n"


def hashed(text: str) -> str:
    """A source of a content security policy: the hash of an element's text."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def assembled(title: str, about: str, model: str, network: str, runtime: str, worker: str) -> str:
    """The page: the template with everything in its place, in one pass, so that no content is taken for a place."""
    app, style = program(*APP), program("style.css")
    values = {
        "policy": POLICY.format(script=hashed(app), style=hashed(style)),
        "version": html.escape(__version__),
        "title": html.escape(title),
        "about": html.escape(about),
        "style": style,
        "licence": html.escape(program("licence.txt")),
        "notices": packed(notices().encode()),
        "model": model, "network": network, "runtime": runtime, "worker": worker, "app": app,
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], program("page.html"))
