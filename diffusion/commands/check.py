"""`diffusion check`: the order of every sampler and the consistency of every schedule, including custom ones."""

import shlex
from pathlib import Path

from diffusion.bench.report import check
from diffusion.commands.options.parser import Parser
from diffusion.support.files import check_writable


def main(argv: list[str]) -> int:
    parser = Parser("check", "Test samplers and schedules against closed-form solutions; exit code 1 if one fails.")
    parser.epilog = "An import path names a class of your own: --sampler my_module.MySampler, without arguments."
    add = parser.add_argument
    add("--sampler", nargs="+", metavar="NAME", help="short names or import paths (default: all)")
    add("--schedule", nargs="+", metavar="NAME", help="short names or import paths (default: all)")
    add("--out", type=Path, help="write the tables to this .md file")
    words = parser.read(argv)
    if words.out and words.out.suffix != ".md":
        raise ValueError(f"--out {words.out}: wanted a .md")
    if words.out:
        check_writable(words.out)
    report = check(words.sampler, words.schedule)
    print(report)
    if words.out:
        report.save(words.out, f"diffusion check {shlex.join(argv)}")
    return 1 if report.failures else 0
