"""`diffusion film`: a film of the denoising of pictures."""

from diffusion.commands.options.parser import Parser, add_request, fields_of
from diffusion.generation.film import PICTURES, write
from diffusion.generation.request import Request

FILM = ("out", "frames", "fps", "hold", "size")


def main(argv: list[str]) -> int:
    parser = Parser("film", "Film the denoising of a few pictures.", further=True, data=True)
    add_request(parser, str(PICTURES), "denoising.gif")
    add = parser.add_argument
    add("--frames", type=int, default=40, help="frames from noise to picture (default 40)")
    add("--hold", type=float, default=2.0, help="additional seconds for the last frame (default 2)")
    add("--fps", type=float, default=15.0, help="frames per second (default 15; a GIF at most 50)")
    add("--size", type=int, default=0, help="width of one picture in pixels, rounded to an integer enlargement")
    words = parser.read(argv)
    with parser.explaining():
        opened, frames = write(Request.of(**fields_of(words, *FILM)), *(getattr(words, name) for name in FILM))
    height, width = frames[0].shape[:2]
    sampler = opened.pipeline.sampler
    print(
        f"{words.out}: {len(frames)} frames of {width}x{height} pixels, {words.out.stat().st_size / 1024:,.0f} KB, "
        f"{type(sampler).__name__} {sampler.steps} steps, {words.weights} weights, seed {words.seed}"
    )
    return 0
