"""`diffusion describe`: a network's parameters block by block, its FLOPs per image, and the memory it takes."""

from diffusion.commands.options.parser import Parser
from diffusion.commands.options.settings import split
from diffusion.support.configurations import configuration
from diffusion.training.describe import describe


def main(argv: list[str]) -> int:
    parser = Parser(
        "describe",
        "Show a network: parameters and FLOPs of each part for one image (a multiply-add is two), and memory in "
        "float32.",
    )
    parser.epilog = "Options of `diffusion fit` override the configuration: --model.net.depth 2."
    add = parser.add_argument
    add("what", nargs="*", help="configuration files, later ones overriding earlier ones; or a RUN")
    add("-c", "--config", action="append", default=[], metavar="FILE", help="a configuration file, as for fit")
    mine, settings = split(parser, argv)
    words = parser.read(mine)
    if not (what := [*words.what, *map(configuration, words.config)]):
        parser.error("a configuration file or a run is required")
    print(describe(what, settings))
    return 0
