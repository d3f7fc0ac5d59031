"""`diffusion evaluate`: how good the samples of a run are, how sure that is, and what real images would score."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from diffusion.data.recorded import constructor, kind_of
from diffusion.generation.arguments import taken
from diffusion.generation.choices import Choices
from diffusion.generation.counting import evaluations
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.judging import sweep
from diffusion.judging.measure import Opened, measure, open_models, open_runs
from diffusion.metrics.base import Metric, known, metric
from diffusion.metrics.bits import Bits
from diffusion.metrics.extractor import to_labels
from diffusion.options.parser import Parser, add_machine, add_sampling, add_weights
from diffusion.samplers import Sampler
from diffusion.support.console import interval, number, progress, rows_of, shown
from diffusion.support.processes import Processes, together
from diffusion.training.run import quiet

DEFAULT = "frechet,kid,pr,dc,is,consistency,diversity,memory"
ARROWS = {"low": "lower is better", "high": "higher is better", "floor": "as test images"}


def main(argv: list[str]) -> int:
    measured(argv)
    return 0


def measured(argv: list[str]) -> list[dict]:
    """The command; the records of what it measured."""
    parser = Parser(
        "evaluate", "Measure samples of a run: each figure with a 95 % interval and what test images score.",
        further=True, data=True,
    )  # fmt: skip
    parser.epilog += " What was measured is kept in RUN/evaluation/ and not measured again."
    add = parser.add_argument
    add("run", nargs="*", default=[], help="run directory, experiment folder, or checkpoint file; several are compared")
    add("--runs", nargs="+", default=[], help="the same, as an option")
    add("--n", type=int, default=5000, help="samples (default 5000)")
    add("--metrics", help=f"of {', '.join(known())} (default: all but nll; in a sweep frechet,consistency)")
    add("--sweep", help='settings to compare: "sampler=DDIM,UniPC steps=5,10,20 scale=1,2; sampler=DDPM steps=50"')
    add_sampling(parser)
    add("--seed", type=int, default=1, help="of the samples (default 1)")
    add_weights(parser)
    add("--features", default="auto", help="auto, a Classifier's run or checkpoint, or Inception:FILE (default auto)")
    add("--keep", action="store_true", help="keep the samples beside the figures, as .npz")
    add("--again", action="store_true", help="measure again what was measured before")
    add_machine(parser, 500)
    args = parser.read(argv)
    paths = [*args.run, *args.runs]
    if not paths:
        parser.error("a run is missing")
    if args.n < 2 or args.batch_size < 1:
        raise ValueError(f"--n must be at least 2 and --batch_size 1, got {args.n} and {args.batch_size}")
    names = args.metrics.split(",") if args.metrics else (sweep.DEFAULT if args.sweep else DEFAULT).split(",")
    metrics = [metric(name.strip()) for name in names]
    args.asked = bool(args.metrics)
    settings = sweep.parse(args.sweep) if args.sweep else [{}]
    quiet()
    models = open_models(paths, args)
    jobs = [
        (k, setting, *choose(parser, args, m, setting)) for k, (_, m) in enumerate(models) for setting in settings
    ]
    with together() as processes:
        return evaluate(args, open_runs(models, args, data_of(args, models), processes), jobs, metrics, processes)


def data_of(args: Namespace, models: list) -> dict:
    """The options of the data set, converted to its arguments' types."""
    known = {name: p.annotation for name, p in constructor(kind_of(models[0][0])).items()}
    own, other = taken(args.data, known)
    return own | other


def choose(parser: Parser, args: Namespace, model: Pipeline, setting: dict) -> tuple[Sampler, Guidance]:
    """How to sample: as the run does, changed by the command line, changed by a setting of the sweep."""
    names = {f.name for f in fields(Choices)} - {"arguments"}
    words = {name: getattr(args, name) for name in names} | {k: v for k, v in setting.items() if k in names}
    more = {k: v for k, v in setting.items() if k not in names}
    with parser.explaining():
        return Choices(**words, arguments=args.arguments | more).resolve(model)


def evaluate(
    args: Namespace, opened: list[Opened], jobs: list[tuple], metrics: list[Metric], processes: Processes
) -> list[dict]:
    """Measure every job (number of its run, setting of the sweep, sampler, guidance), and print what came out."""
    usable = [measurable(run, metrics, args) for run in opened]
    print(f"judge: {described(opened[0])}")
    for warning in opened[0].evaluator.warnings(args.n):
        print(f"warning: {warning}")
    records = []
    part = processes.part(args.n)
    costs = [(part.stop - part.start) * evaluations(s, opened[k].model.denoiser.schedule) for k, _, s, _ in jobs]
    with progress(sum(costs), processes) as bar:
        for (k, setting, sampler, guidance), work in zip(jobs, costs, strict=True):
            bar.set_description(f"{type(sampler).__name__} {getattr(sampler, 'steps', '')}".strip(), refresh=False)
            before = bar.n
            records.append(measure(opened[k], args, sampler, guidance, usable[k], bar, processes) | {"asked": setting})
            bar.update(work - (bar.n - before))  # what was known already
    if not processes.first:
        return records
    if args.sweep:
        for k, run in enumerate(opened):
            sweep.report(run, [r for r, job in zip(records, jobs, strict=True) if job[0] == k], args)
    elif len(opened) > 1:
        print(compared(records, opened))
    else:
        print(table(records[0]))
    for record in records if not args.sweep else ():
        print(f"written: {shown(Path(record['file']))}")
    return records


def measurable(run: Opened, metrics: list[Metric], args: Namespace) -> list[Metric]:
    """The metrics that this model can be measured by.

    Raises:
        ValueError: one was asked for by name and cannot be measured.
    """
    labels = run.evaluator.labels(args.n) if run.model.num_classes or run.model.context_dim else None
    probe = run.evaluator.reference.train
    logits, count = probe.logits[:1].expand(args.n, -1), probe.pixels[:1].expand(args.n, -1, -1, -1)
    like = type(probe)(count, probe.features[:1].expand(args.n, -1), logits, to_labels(labels))
    good = []
    for kind in metrics:
        reason = "" if isinstance(kind, Bits) else kind.missing(like, run.evaluator.reference)
        if reason and args.asked:
            raise ValueError(f"--metrics {kind.key}: {reason}")
        if reason:
            print(f"left out {kind.key}: {reason}")
        else:
            good.append(kind)
    return good


def described(run: Opened) -> str:
    """The judge in words."""
    extractor, reference = run.evaluator.extractor, run.evaluator.reference
    test = reference.test
    share = float((test.logits.argmax(1) == test.labels).float().mean())
    right = f", right on {share:.1%} of the {len(test):,} test images" if extractor.class_names else ""
    return (
        f"{extractor.name} {extractor.hash}, {test.features.shape[1]:,} features{right}; held against the "
        f"{len(reference.train):,} training images of {run.evaluator.data}, reference {reference.hash}"
    )


def table(record: dict) -> str:
    """Every figure of a setting: value, interval, and test images beside samples at equal numbers."""
    setting = record["setting"]
    most = max(f["m"] for f in record["figures"])
    rows = [("metric", "value", "95 % interval", f"{most:,} test images", "as many samples", "")]
    rows += [
        (f["metric"], number(f["value"]), interval(f), number(f["floor"]), number(f["matched"]), ARROWS[f["better"]])
        for f in record["figures"]
    ]
    return f"{head(setting, record)}\n{rows_of(rows)}{alerts(record)}"


def head(setting: dict, record: dict) -> str:
    """The setting in words."""
    return (
        f"\n{setting['n']:,} samples of step {setting['step']:,}: {setting['sampler']}, {setting['steps']} steps "
        f"({record['evaluations']:g} network evaluations), scale {setting['scale']:g}, {setting['weights']} weights, "
        f"seed {setting['seed']}; {record['seconds']:.0f} s on {record['machine']}"
    )


def alerts(record: dict) -> str:
    return "".join(f"\nALERT: {f['alert']}" for f in record["figures"] if f["alert"])


def compared(records: list[dict], opened: list[Opened]) -> str:
    """A column a run; an asterisk at what is best beyond the others' intervals."""
    heads = [
        f"\n[{k}] {shown(o.path)}{head(r['setting'], r)}"
        for k, (o, r) in enumerate(zip(opened, records, strict=True), 1)
    ]
    rows = [("metric", *(f"[{k}]" for k in range(1, len(records) + 1)), "test images", "")]
    names = [f["metric"] for f in records[0]["figures"]]
    for name in names:
        figures = [next((f for f in r["figures"] if f["metric"] == name), None) for r in records]
        cells = [f"{number(f['value'])} ({interval(f)})" if f else "" for f in figures]
        kind = next(f for f in figures if f)
        if best := winner(figures):
            cells[best - 1] += " *"
        rows.append((name, *cells, number(kind["floor"]), ARROWS[kind["better"]]))
    said = "* better than every other beyond both intervals"
    return f"{''.join(heads)}\n{rows_of(rows)}\n  {said}{''.join(map(alerts, records))}"


def winner(figures: list[dict | None]) -> int:
    """Which of the figures (from 1) is better than all others beyond both intervals; 0 for none."""
    for k, mine in enumerate(figures, 1):
        others = [f for f in figures if f is not mine]
        if mine is None or any(f is None for f in others) or mine["better"] == "floor":
            continue
        if all(mine["high"] < f["low"] if mine["better"] == "low" else mine["low"] > f["high"] for f in others):
            return k
    return 0
