"""`diffusion prepare`: images of any kind, checked, resized and stored for training, once."""

from diffusion.commands.options.parser import Parser, fields_of
from diffusion.preparing.prepare import run
from diffusion.preparing.settings import CHOICES, settings


def main(argv: list[str]) -> int:
    parser = Parser("prepare", "Prepare images for training: look at them, resize them, and store them with a report.")
    add = parser.add_argument
    add("source", help="folder, .zip, .tar, .parquet, .npy, .npz, .h5, or torchvision:NAME (docs/data.md)")
    add("--out", required=True, help="folder to write; a run that was interrupted is continued")
    add("--size", help="pixels, one number for a square or HEIGHTxWIDTH: 64, 64x96 (default: that of the images)")
    add("--crop", choices=CHOICES["crop"], default="center", help="how other sides are met (default center)")
    add("--filter", choices=CHOICES["filter"], default="lanczos", help="of the resizing (default lanczos)")
    add("--linear", action="store_true", help="resize in linear light")
    add("--enlarge", action="store_true", help="enlarge images that are too small, which are refused otherwise")
    add("--channels", type=int, default=0, help="1 grey, 3 RGB, 4 RGBA (default: what the images have)")
    add("--dtype", choices=CHOICES["dtype"], default="auto", help="of the stored images (default: theirs)")
    add("--alpha", choices=CHOICES["alpha"], default="composite", help="transparency (default composite)")
    add("--background", default="white", help="colour behind transparency and padding (default white)")
    add("--label", default="auto", help="column of the class, folders, or none (default: a column, else folders)")
    add("--caption", default="auto", help="column of the text, or none (default: caption or text, or a .txt beside)")
    add("--targets", help="number columns to learn from: age,weight")
    add("--key", default="", help="name of the array in a .npz or HDF5 file, or of the image column of Parquet")
    add("--layout", choices=CHOICES["layout"], default="auto", help="of arrays (default: found by their shape)")
    add(
        "--duplicates",
        choices=CHOICES["duplicates"],
        default="keep",
        help="exact: leave out copies; drop: near ones, too",
    )
    add("--clusters", metavar="K", type=int, default=0, help="K clusters of the images as classes, not their labels")
    add("--test", default="0.1", help="fraction of the test split, unless the source has one (default 0.1)")
    add("--max-bad", "--max_bad", default="1%", help="fraction of images that may be refused (default 1%%)")
    add("--name", default="", help="of the data set (default: that of the folder)")
    add("--part", metavar="K/N", help="prepare one of N parts, as on one of N machines")
    add("--merge", action="store_true", help="join the parts once all are there")
    add("--workers", type=int, default=0, help="processes (default: one per core)")
    add("--ray", metavar="ADDRESS", help="work on a Ray cluster: its address, or local; its nodes share SOURCE and OUT")
    words = parser.read(argv)
    run(settings(**fields_of(words, "arguments", "data")), tell=print)
    return 0
