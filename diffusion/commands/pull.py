"""`diffusion pull`: download a published model."""

from diffusion.commands.options.parser import Parser
from diffusion.exchange.importing.pulling import pull
from diffusion.support import zoo
from diffusion.support.console import shown, tool


def main(argv: list[str]) -> int:
    parser = Parser("pull", "Download a published model, check it, and make a run of it; without NAME, list them.")
    parser.add_argument("name", nargs="?", default="", help="name of the model")
    parser.add_argument("--out", default="", metavar="RUN", help="run directory to write (default: in the cache)")
    words = parser.read(argv)
    if not words.name:
        for entry in zoo.entries().values():
            size = sum(file.size for file in entry.files) / 1e6
            print(f"  {entry.name:16}{size:8.1f} MB  {entry.licence:14}{entry.about}")
        return 0
    run = pull(words.name.removeprefix(zoo.PREFIX), words.out or None, progress=True)
    print(f"next: {tool('diffusion')} sample {shown(run) if words.out else zoo.PREFIX + words.name} --n 16")
    return 0
