"""`diffusion nll`: the likelihood of a split's images under a model, in bits per dimension."""

from pathlib import Path

from diffusion.commands.options.parser import Parser, add_run, add_threads, fields_of
from diffusion.judging.nll import Request, answer
from diffusion.support.files import check_writable


def main(argv: list[str]) -> int:
    parser = Parser(
        "nll", "Negative log-likelihood of a split in bits/dim, by the variational bound and by the ODE.", data=True
    )
    add_run(parser)
    add = parser.add_argument
    add("--method", choices=["both", "vlb", "ode"], default="both", help="default both")
    add("--split", choices=["train", "test"], default="test", help="default test")
    add("--n", type=int, help="only the first n images (default: all)")
    add("--steps", type=int, help="length of the bound's chain (default: T, or 1000)")
    add("--variance", choices=["small", "large", "learned"], help="of its steps (default: learned, else large)")
    add("--exact", action="store_true", help="the ODE's exact divergence, at D times the cost")
    add("--tolerance", type=float, default=1e-3, help="of the ODE's solver (default 1e-3)")
    add("--unconditional", action="store_true", help="do not condition on the labels (default: condition on them)")
    add("--seed", type=int, default=0, help="of noise, probes and dequantisation (default 0)")
    add("--batch_size", type=int, default=256, help="images per batch (default 256)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    add("--out", type=Path, help="also write every term of every image to this .json file")
    add_threads(parser)
    words = parser.read(argv)
    request = Request(**fields_of(words, "out", "arguments"))
    if words.out:
        check_writable(words.out)
    with parser.explaining():
        report = answer(request)
    print(report)
    if words.out:
        report.save(words.out)
        print(f"every term of every image: {words.out}")
    return 0
