"""`diffusion evaluate`: the quality of a run's samples, with confidence intervals and the scores of real images."""

from functools import partial

from diffusion.commands.options.parser import Parser, add_cascade, add_machine, add_sampling, add_weights, fields_of
from diffusion.judging.evaluate import answer
from diffusion.judging.request import METRICS, SWEEP_METRICS, UNLABELLED, Request
from diffusion.metrics.base import known
from diffusion.support.console import shown
from diffusion.support.processes import together
from diffusion.training.extractor_of import train_extractor
from diffusion.training.run import train


def main(argv: list[str]) -> int:
    parser = Parser(
        "evaluate", "Measure samples of a run: each figure with a 95 % interval and the score of test images.",
        further=True, data=True,
    )  # fmt: skip
    parser.epilog += " Results are stored in RUN/evaluation/ and not measured again."
    add = parser.add_argument
    add("run", nargs="*", default=[], help="run directory, experiment folder, or checkpoint file; several are compared")
    add("--runs", nargs="+", default=[], help="the same, as an option")
    add("--n", type=int, default=5000, help="samples (default 5000)")
    default = f"default: {METRICS}; of data without classes {UNLABELLED}; in a sweep {SWEEP_METRICS}"
    add("--metrics", help=f"of {', '.join(known())} ({default})")
    add("--sweep", help='settings to compare: "sampler=DDIM,UniPC steps=5,10,20 scale=1,2; sampler=DDPM steps=50"')
    add_sampling(parser)
    add_cascade(parser)
    add("--seed", type=int, default=1, help="seed of the samples (default 1)")
    add_weights(parser)
    add("--features", default="auto", help="auto (default), a run or checkpoint of an extractor, or Inception:FILE")
    add("--keep", action="store_true", help="keep the samples beside the figures, as .npz")
    add("--again", action="store_true", help="repeat measurements that are already stored")
    add_machine(parser, 500)
    words = parser.read(argv)
    chosen = fields_of(words, "run", "runs", "then")
    request = Request.of([*words.run, *words.runs], then=tuple(words.then), **chosen)
    with together() as processes, parser.explaining():
        table = answer(request, processes, partial(train_extractor, fit=train), tell=print)
        print(table)
        for file in table.files:
            print(f"written: {shown(file)}")
    return 0
