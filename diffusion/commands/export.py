"""`diffusion export`: a trained model in the format of another program."""

from pathlib import Path

from diffusion.commands.options.parser import Parser, add_run, add_sampling, fields_of
from diffusion.exchange.exporting.export import FORMATS, export
from diffusion.support.console import tool

NEXT = {
    "safetensors": "{diffusion} sample {path} --n 64",
    "onnx": "{diffusion} sample {path} --n 64",
    "page": "open {path} in a browser, or send it to a friend",
    "diffusers": 'diffusers.DiffusionPipeline.from_pretrained("{path}"{trust})',
}


def main(argv: list[str]) -> int:
    parser = Parser("export", "Write a trained model in the format of another program (docs/export.md).", further=True)
    parser.epilog += (
        " --to: x.safetensors (with x.json) has the weights and opens like a run; x.onnx has the network, the schedule "
        "and the sampler, for ONNX Runtime; x.html is a page that samples in a browser; x is a folder for diffusers. "
        "--sampler, --scale and so on set the defaults of the exported model."
    )
    add_run(parser)
    add = parser.add_argument
    add("--to", type=Path, required=True, help="x.safetensors, x.onnx, x.html, or a folder")
    add("--format", choices=list(FORMATS), help="default: by the suffix of --to")
    add(
        "--precision", choices=["32", "bf16", "fp16"], default="32", help="of the weights in x.safetensors (default 32)"
    )
    add(
        "--storage",
        choices=["fp32", "fp16", "int8"],
        default="fp32",
        help="of the weights in x.onnx and x.html (default fp32)",
    )
    add_sampling(parser)
    words = parser.read(argv)
    with parser.explaining():
        made = export(words.run, **fields_of(words, "run", "data"))
    pipeline = made.source.pipeline
    print(
        f"{', '.join(map(str, made.files))}: {made.size / 1024:,.0f} KB, {type(pipeline.denoiser.net).__name__}, "
        f"{type(pipeline.denoiser.schedule).__name__}, {words.weights} weights of step {made.source.step:,}"
    )
    if made.difference:
        print(f"{words.storage} against float32, of the network's output on noise: {made.difference}")
    for note in made.notes:
        print(f"note: {note}")
    trust = ", trust_remote_code=True" if any(made.files[0].rglob("*.py")) else ""  # of a folder
    print(f"next: {NEXT[made.format].format(diffusion=tool('diffusion'), path=made.files[0], trust=trust)}")
    return 0
