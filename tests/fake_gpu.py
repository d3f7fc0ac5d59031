"""A simulated GPU: checks devices and counts every wait of the host, on a machine without a GPU.

Inside `FakeGPU` a tensor on "cuda" is one of torch's fake tensors, with a shape, a dtype and a device but no data, and
a tensor on the CPU is real. An operation on tensors of two devices raises, as it does on a GPU. An operation that makes
the host wait for the device is recorded with the function of this project that caused it, and returns a given value, so
that the code continues. Three kinds are counted:

    read    the host needs a value that the device computes: .item(), bool(), .tolist(), .cpu(), nonzero, equal
    send    a blocking copy to the device, which first waits for all that the device has yet to do
    index   an index on the CPU of a tensor on the device: a hidden send

A backward pass needs a driver; its gradients are zeros here, of the right shape on the right device.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

import diffusion

aten = torch.ops.aten
PROJECT = Path(diffusion.__file__).parent
OTHERS = ("pytorch_lightning", "torchmetrics", "tensorboard")  # named if no function of ours runs
DEVICE = torch.device("cuda", 0)
FREE = 80 * 2**30  # bytes of memory that the device has
Places = dict[str, set[tuple[str, int]]]  # name of a function -> kind and line of each place where it waits
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Wait(NamedTuple):
    """One wait of the host: its kind, the function that caused it, and the line."""

    kind: str
    name: str  # qualified name of the innermost function of the project, or of a package; "" for a test itself
    line: int


class Generator(torch.Generator):
    """A `torch.Generator` that claims to be on the device, where a real one requires a driver."""

    def __new__(cls, device: torch.device | str = "cpu"):
        made = super().__new__(cls)
        made.home = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.home


class FakeDevice(FakeTensorMode):
    """Fake tensors for what is on the device; everything else is computed.

    Torch skips the initialisation of CUDA while a mode of this kind is on, so that the mode stays on throughout.

    Args:
        gpu: records each wait, and supplies the value that is read.
    """

    def __init__(self, gpu: "FakeGPU") -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.gpu = gpu

    @property
    def avoid_device_init(self) -> bool:
        return True  # on a machine that has a GPU too

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = list(tree_iter((args, kwargs)))
        if not any(isinstance(v, FakeTensor) or on_device(v) for v in leaves):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return torch.full((), self.gpu.asked(), dtype=args[0].dtype).item()
        if func is aten._linalg_check_errors.default:
            return self.gpu.wait("read") and None
        if func is aten.equal.default:
            return bool(self.gpu.asked())
        if func is aten.nonzero.default:
            self.gpu.wait("read")
            return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is aten._to_copy.default and not fake(args[0]):
            if not kwargs.get("non_blocking"):
                self.gpu.wait("send")
        elif func is aten.copy_.default and not fake(args[1]):
            if args[1].ndim and not (kwargs.get("non_blocking") or len(args) > 2 and args[2]):
                self.gpu.wait("send")
        elif func is aten._to_copy.default and torch.device(kwargs.get("device") or DEVICE).type == "cpu":
            return torch.full(args[0].shape, self.gpu.asked(), dtype=kwargs.get("dtype") or args[0].dtype)
        elif func is aten.copy_.default and not fake(args[0]):
            return args[0].fill_(self.gpu.asked())
        if func in INDEXED and fake(args[0]):
            for index in (v for v in args[1] if v is not None and not fake(v)):
                self.gpu.wait("read" if index.dtype in (torch.bool, torch.uint8) else "index")
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if any(fake(v) and v.device.type == "cpu" for v in leaves):
            return result  # of torch itself, as it describes a real tensor
        return tree_map_only(FakeTensor, real_on_cpu, result)


class FakeFunctions(TorchFunctionMode):
    """Functions that bypass the dispatcher: generators, gradients, pinned memory, lists."""

    def __init__(self, gpu: "FakeGPU") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.autograd.grad:
            return gradients(*args, **kwargs)
        if func is Tensor.backward and fake(args[0]):
            return backward(args[0])
        if func is Tensor.pin_memory:
            return args[0].clone()
        if func is Tensor.tolist and fake(args[0]):
            return args[0].cpu().tolist()
        if func is Tensor.numpy and fake(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        given = kwargs.get("generator")
        if given is not None:
            on = next((v.device for v in args if isinstance(v, Tensor)), torch.device(kwargs.get("device") or "cpu"))
            if on.type != given.device.type:
                raise RuntimeError(f"Expected a '{on.type}' device type for generator but found '{given.device.type}'")
            if on.type == "cuda":
                kwargs["generator"] = None
        return func(*args, **kwargs)


class FakeGPU:
    """The simulated device, with a record of the host's waits.

    Args:
        answers: function of the project -> the value that its reads return; 1 for all others.
    """

    def __init__(self, answers: dict[str, float] | None = None) -> None:
        self.answers = answers or {}
        self.waits: list[Wait] = []

    @contextmanager
    def on(self, free: int = FREE) -> Iterator[None]:
        """Simulate the device inside the block.

        Args:
            free: bytes of its memory that are free.
        """
        with ExitStack() as stack:
            put = [
                mock.patch.object(torch, "Generator", Generator),
                mock.patch.object(torch.cuda, "default_generators", (Generator(DEVICE),)),
                mock.patch.object(torch.cuda, "get_rng_state", lambda device=None: None),  # kept on the host
                mock.patch.object(torch.cuda, "set_rng_state", lambda state, device=None: None),
                mock.patch.object(torch.cuda, "mem_get_info", lambda device=None: (free, FREE)),
                mock.patch.object(nn.Module, "_apply", converted),
            ]
            for part in (*put, FakeDevice(self), FakeFunctions(self)):
                stack.enter_context(part)
            yield

    def wait(self, kind: str) -> Wait:
        """Record a wait of this kind, and the function that caused it."""
        self.waits.append(Wait(kind, *caller(sys._getframe(1))))
        return self.waits[-1]

    def asked(self) -> float:
        """The value that the current read returns."""
        return self.answers.get(self.wait("read").name, 1.0)

    def since(self, first: int = 0) -> Places:
        """The places of all waits from number `first` on, by function; waits of a test itself do not count."""
        found: Places = defaultdict(set)
        for kind, name, line in self.waits[first:]:
            if name:
                found[name].add((kind, line))
        return found

    @contextmanager
    def counted(self) -> Iterator[Places]:
        """A dict that is filled, at the end of the block, with the places that waited inside."""
        found: Places = {}
        first = len(self.waits)
        yield found
        found |= self.since(first)


def supported() -> bool:
    """Whether this torch copies a real tensor to a fake device; torch 2.6 asks the driver to do it, 2.15 does not."""
    try:
        with FakeGPU().on(FREE):
            return fake(torch.zeros(2).to(DEVICE))
    except RuntimeError as error:
        if "driver" not in str(error):
            raise
        return False


def fake(value: Any) -> bool:
    """Whether a value is a tensor on the device."""
    return isinstance(value, FakeTensor)


def on_device(value: Any) -> bool:
    """Whether an argument names the device."""
    return isinstance(value, torch.device) and value.type == "cuda"


def real_on_cpu(value: FakeTensor) -> Tensor:
    """A result that lies on the CPU, such as `torch.empty_like(x, device="cpu")`, as a real tensor of zeros."""
    return value if value.device.type == "cuda" else torch.zeros(value.shape, dtype=value.dtype)


def caller(frame: FrameType | None) -> tuple[str, int]:
    """The innermost running function of the project, otherwise of `OTHERS`, and its line."""
    other = ("", 0)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{PROJECT}/"):
            return qualified(path, frame.f_lineno), frame.f_lineno
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in OTHERS and not other[0]:
            other = (package, 0)
        frame = frame.f_back
    return other


@cache
def qualified(path: str, line: int) -> str:
    """The class and the outermost function that contain a line of a file: `Masked.read`."""
    name, inside = [], ast.parse(Path(path).read_text()).body
    while found := next((n for n in inside if isinstance(n, SCOPES) and n.lineno <= line <= n.end_lineno), None):
        name.append(found.name)
        inside = found.body if isinstance(found, ast.ClassDef) else []
    return ".".join(name) or Path(path).stem


SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def converted(self: nn.Module, fn, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put a fake tensor into a real weight, so it replaces the weight."""
    for module in self.modules() if recurse else [self]:
        for key, weight in module._parameters.items():
            with torch.no_grad():
                new = weight if weight is None else fn(weight)
            if fake(new) or fake(weight):
                module._parameters[key] = new if new is weight else nn.Parameter(new, weight.requires_grad)
            elif weight is not None:
                weight.data = new
        module._buffers.update({k: v if v is None else fn(v) for k, v in module._buffers.items()})
    return self


def gradients(outputs, inputs, grad_outputs=None, *args, **kwargs) -> tuple[Tensor, ...]:
    """`torch.autograd.grad`: of tensors on the device, zeros like the inputs.

    Raises:
        RuntimeError: an output has no graph, an input is no part of it, or a gradient lies elsewhere.
    """
    all_of = [[v] if isinstance(v, Tensor) else list(v or []) for v in (outputs, inputs, grad_outputs)]
    if not any(map(fake, all_of[0])):
        return GRAD(outputs, inputs, grad_outputs, *args, **kwargs)
    reached = set()
    for output in all_of[0]:
        if not output.requires_grad:
            raise RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")
        reached |= {id(v) for v in graph(output)}
    for given, output in zip(all_of[2], all_of[0], strict=False):
        if given.device != output.device or given.shape != output.shape:
            raise RuntimeError(f"a gradient on {given.device} for an output on {output.device}")
    for wanted in all_of[1]:
        if id(wanted) not in reached and id(wanted.grad_fn) not in reached:
            raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph")
    return tuple(torch.zeros_like(v) for v in all_of[1])


def backward(loss: Tensor) -> None:
    """`loss.backward()`, which gives a gradient of zeros to every weight that the loss depends on."""
    if loss.ndim or not loss.requires_grad:
        raise RuntimeError("grad can be implicitly created only for scalar outputs that require grad")
    for value in graph(loss):
        if isinstance(value, Tensor) and value.is_leaf and value.grad is None:
            value.grad = torch.zeros_like(value, requires_grad=False)


def graph(output: Tensor) -> list:
    """The nodes of a result's autograd graph, and its leaves."""
    found, nodes = {}, [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        nodes += [n for n, _ in node.next_functions]
    return [*found.values(), *(n.variable for n in found.values() if hasattr(n, "variable")), output]


GRAD = torch.autograd.grad


class Allowed(NamedTuple):
    """A function that may make the host wait: the number of places, the parts of the tests, and the reason."""

    places: int
    scopes: frozenset[str]
    why: str

    @classmethod
    def at(cls, places: int, scopes: str, why: str) -> "Allowed":
        """An entry whose scopes are separated by commas."""
        return cls(places, frozenset(scopes.split(", ")), why)


class Ledger:
    """Compares the waits that happened with those that are allowed.

    Args:
        allowed: function name -> what it is allowed.
    """

    def __init__(self, allowed: dict[str, Allowed]) -> None:
        self.allowed = allowed
        self.places: Places = defaultdict(set)
        self.scopes: dict[str, set[str]] = defaultdict(set)

    def check(self, scope: str, found: Places) -> None:
        """Record the waits in a part of the tests.

        Raises:
            AssertionError: a wait that is not allowed there.
        """
        for name, places in found.items():
            said = f"{name} makes the host wait ({', '.join(f'{kind} in line {n}' for kind, n in sorted(places))})"
            allowed = self.allowed.get(name)
            assert allowed and scope in allowed.scopes, f"{said} in {scope!r}, which is not allowed"
            self.places[name] |= places
            self.scopes[name].add(scope)
            count = len(self.places[name])
            assert count <= allowed.places, f"{said}: at {count} places in all, and {allowed.places} are allowed"

    def idle(self) -> list[str]:
        """Messages about allowed waits that have not happened."""
        found = []
        for name, allowed in self.allowed.items():
            if missing := sorted(allowed.scopes - self.scopes[name]):
                found.append(f"{name} is allowed to wait in {', '.join(missing)}, and does not")
            if (count := len(self.places[name])) < allowed.places:
                found.append(f"{name} is allowed to wait at {allowed.places} places, and does at {count}")
        return found
