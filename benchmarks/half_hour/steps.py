"""The steps of a half hour, in order of value: what each finds out, its limit, and what it needs."""

from benchmarks.half_hour.plan import Step

MNIST = ("MNIST/raw/train-images-idx3-ubyte*",)
CIFAR = ("cifar-10-batches-py/data_batch_1", "cifar10-jpeg*/*")
PEERS = ("diffusers", "accelerate", "denoising_diffusion_pytorch")


def of(module: str, words: str = "") -> tuple[str, ...]:
    """The words of `python -m MODULE WORDS`."""
    return ("-m", *module.split(), *words.split())


FULL = (
    Step("configs", "every configuration trains, and its steps do not wait", of("benchmarks.half_hour.configs"), 220),
    Step("tests", "the tests marked gpu", of("pytest", "-q -n0 -m gpu tests/test_gpu.py"), 120,
         needs=("pytest", "xdist")),
    Step("overhead", "fit against a bare loop; the goal is 95 %",
         of("benchmarks.overhead", "--batch 128 --block 20 --precision bf16-mixed"), 90),
    Step("origin", "against the original loop; the goal is 20 times", of("benchmarks.origin", "--rounds 4"), 90),
    Step("flops", "share of the tensor cores' peak", of("benchmarks.gpu", "flops"), 60),
    Step("flops_compiled", "the same, compiled", of("benchmarks.gpu", "flops --compile default"), 120),
    Step("graphs", "fit with CUDA graphs against an eager bare loop",
         of("benchmarks.overhead", "--batch 128 --block 20 --precision bf16-mixed --compile reduce-overhead"), 120),
    Step("watch", "the host's time by hook, and that of a row of watch.csv",
         of("benchmarks.hooks", "--batch 128 --precision bf16-mixed --steps 100"), 60),
    Step("sampling", "sampling against the bare network and diffusers",
         of("benchmarks.sampling", "--n 64 --steps 50"), 90, needs=("diffusers",)),
    Step("peers", "training against diffusers and lucidrains",
         of("benchmarks.peers", "--block 10 --pairs 6 --precision bf16-mixed"), 150, needs=PEERS),
    Step("mnist", "MNIST's ten epochs", of("benchmarks.gpu", "mnist --out {work}"), 240, data=MNIST),
    Step("cifar", "CIFAR-10 for the rest of the time",
         of("benchmarks.half_hour.cifar", "--seconds {seconds} --out {work} --width {width}"), 0, 300, data=CIFAR),
)  # fmt: skip
SMOKE = {  # the same at toy size on a CPU
    "configs": "--only digits digits_flow",
    "tests": "-q -n0 -m gpu tests/test_gpu.py",
    "overhead": "--config configs/digits.yaml --batch 8 --block 1 --pairs 2 --precision 32-true",
    "origin": "--batch 2 --steps 1 --rounds 1",
    "flops": "flops --small --batch 4",
    "flops_compiled": "flops --small --batch 4 --compile default",
    "graphs": "--config configs/digits.yaml --batch 8 --block 1 --pairs 2 --precision 32-true "
    "--compile reduce-overhead --model.net.widths [8,16] --model.net.attention 1",
    "watch": "--config configs/digits.yaml --batch 8 --steps 3",
    "sampling": "--n 2 --steps 2 --rounds 2 --empty",
    "peers": "--batch 16 --block 1 --pairs 2 --precision 32-true",
    "mnist": "mnist --small --epochs 1 --out {work}",
    "cifar": "--seconds 60 --out {work} --small",
}
LONG = 600.0  # seconds that a step of toy size may take, on a machine that is busy with other work


def steps(smoke: bool = False, only: tuple[str, ...] = (), init: bool = False) -> list[Step]:
    """The chosen steps.

    Args:
        smoke: at toy size.
        only: names; all by default.
        init: begin with other weights where a step can, given as "{init}".
    Raises:
        ValueError: there is no step of a name.
    """
    if unknown := set(only) - {step.name for step in FULL}:
        raise ValueError(f"no step {min(unknown)!r}; there are: {', '.join(step.name for step in FULL)}")
    found = []
    for step in FULL:
        if only and step.name not in only:
            continue
        if smoke:
            words = SMOKE[step.name].split()
            step = step._replace(argv=(*step.argv[:2], *words), limit=LONG, least=0, data=())
        if init and step.name == "cifar":
            step = step._replace(argv=(*step.argv, "--init", "{init}"))
        found.append(step)
    return found
