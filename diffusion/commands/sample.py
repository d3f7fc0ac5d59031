"""`diffusion sample`: sample pictures from a trained model, as a grid, an array file, or a folder of files."""

from diffusion.commands.options.parser import Parser, add_request, fields_of
from diffusion.generation.request import Request
from diffusion.generation.sample import PICTURES, write


def main(argv: list[str]) -> int:
    parser = Parser("sample", "Sample pictures from a trained model.", further=True, data=True)
    parser.epilog += (
        " --out: x.png is a grid (with --image, each picture beside its image), x.npy has the images "
        "(N, H, W, C), or (N, C, H, W) for more than 4 channels, in the type and units of the data, x.npz has them and "
        "their conditions, x is a folder of PNGs of 8 or 16 bits, or of .npy files where a PNG cannot hold the image."
    )
    add_request(parser, str(PICTURES), "grid.png")
    parser.add_argument("--columns", type=int, default=0, help="pictures per row of the grid (default: one per class)")
    parser.add_argument(
        "--nearest", type=int, default=0, metavar="K",
        help="show the K training images nearest in pixels below each picture; a .npz has them and their distances",
    )  # fmt: skip
    words = parser.read(argv)
    own = ("out", "columns", "nearest")
    with parser.explaining():
        made = write(Request.of(**fields_of(words, *own)), *(getattr(words, name) for name in own))
    if made:
        pipeline, n = made.opened.pipeline, made.opened.n
        share = f" x {made.processes}" if made.processes > 1 else ""
        print(
            f"{words.out}: {n} pictures in {made.seconds:.1f} s ({n / made.seconds:.1f} per second), "
            f"{pipeline.walk}, {words.weights} weights, "
            f"seed {words.seed}, {pipeline.device}{share}"
        )
        if made.psnr:
            hints = f"; of the hints: {made.psnr[1]:.1f} dB" if made.psnr[1:] else ""
            print(f"PSNR to the truth: {made.psnr[0]:.1f} dB{hints}")
        if made.nearest:
            print(made.nearest.words)
    return 0
