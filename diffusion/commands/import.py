"""`diffusion import`: a checkpoint of another program becomes a run."""

from diffusion.commands.options.parser import Parser
from diffusion.exchange.importing.run import SOURCES, import_run
from diffusion.generation.pipeline import Pipeline
from diffusion.support.console import shown, tool


def main(argv: list[str]) -> int:
    parser = Parser("import", "Make a run of a checkpoint that another program wrote.", further=True, data=True)
    parser.epilog = (
        "What the files do not hold is given as the program's own flags, e.g. --image_size 64 --num_heads 4; a missing "
        "one is named. Options of the data set: --data.root DIR. Formats and flags: docs/import.md."
    )
    add = parser.add_argument
    add("path", help="a folder of diffusers, or a .pt or .ckpt file")
    add("--from", dest="source", default="", help=f"{', '.join(SOURCES)} (default: detected)")
    add("--out", default="", metavar="RUN", help="run directory to write (default: the next in lightning_logs/NAME)")
    add("--data", dest="dataset", default="", metavar="NAME", help="its data set, for evaluate and fit: CIFAR10, ...")
    add("--class_names", default="", help="names of the classes: cat,dog (default: those of the data set)")
    words = parser.read(argv)
    names = [name.strip() for name in words.class_names.split(",") if name.strip()]
    notes: list[str] = []
    run = import_run(
        words.path, words.out or None, source=words.source, flags=words.arguments, data=words.dataset,
        arguments=words.data, class_names=names, tell=notes.append,
    )  # fmt: skip
    pipeline = Pipeline.load(run)
    parameters = sum(p.numel() for p in pipeline.denoiser.parameters())
    print(f"{shown(run)}: {pipeline}, {parameters:,} parameters")
    for note in notes:
        print(f"note: {note}")
    print(f"next: {tool('diffusion')} sample {shown(run)} --n 16")
    return 0
