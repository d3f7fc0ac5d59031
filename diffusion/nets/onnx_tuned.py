"""Graphs for ONNX Runtime on a CPU alone: attention by its own operator.

The exporter writes standard operators. Those of ONNX Runtime would make an exported file less portable, so only
graphs that a machine keeps for itself (`--engine onnx`) have them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion.support.extras import extra

DOMAIN = "com.microsoft"
HEADS = [0, 2, 1, 3]  # (B, H, L, D) <-> (B, L, H, D)


def tuned(model: Any) -> Any:
    """The model with what ONNX Runtime computes faster; the same function, except for rounding.

    Args:
        model: an onnx.ModelProto, which is changed.
    """
    graph = Graph(model)
    for softmax in graph.of("Softmax"):
        fuse_attention(graph, softmax)
    return graph.finished()


class Graph:
    """The nodes of a model by what they make, and how often each value is used."""

    def __init__(self, model: Any) -> None:
        self.onnx, self.model, nodes = extra("onnx", "export"), model, list(model.graph.node)
        self.nodes: list[Any] = nodes
        self.maker = {name: node for node in nodes for name in node.output}
        self.users = Counter(name for node in nodes for name in node.input)
        self.users.update(out.name for out in model.graph.output)
        self.constants = {init.name: init for init in model.graph.initializer}
        inferred = self.onnx.shape_inference.infer_shapes(model)
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
        self.gone: set[int] = set()
        self.added: dict[int, list[Any]] = {}  # before which node

    def of(self, kind: str) -> Iterator[Any]:
        """The nodes of a kind."""
        return iter([node for node in self.nodes if node.op_type == kind])

    def made(self, name: str, kind: str) -> Any | None:
        """The node of a kind that makes a value."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def user(self, name: str, kind: str) -> Any | None:
        """The node of a kind that alone uses a value."""
        found = [node for node in self.nodes if name in node.input]
        return found[0] if self.users[name] == 1 and len(found) == 1 and found[0].op_type == kind else None

    def value(self, name: str) -> np.ndarray | None:
        """A constant."""
        if name in self.constants:
            return self.onnx.numpy_helper.to_array(self.constants[name])
        node = self.made(name, "Constant")
        given = node and self.onnx.helper.get_attribute_value(node.attribute[0])
        return self.onnx.numpy_helper.to_array(given) if isinstance(given, self.onnx.TensorProto) else None

    def constant(self, name: str, value: np.ndarray) -> str:
        """The name of a new constant."""
        self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def put(self, where: Any, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        """A new node in front of another one, and its output."""
        node = self.onnx.helper.make_node(kind, inputs, [output], domain=domain, **attributes)
        self.added.setdefault(id(where), []).append(node)
        self.maker[output] = node
        return output

    def drop(self, *nodes: Any) -> None:
        """Leave out nodes."""
        self.gone.update(map(id, nodes))

    def finished(self) -> Any:
        """The model with the new nodes in their places, and without nodes whose output nothing uses."""
        kept = [n for old in self.nodes for n in (*self.added.get(id(old), ()), old) if id(n) not in self.gone]
        needed = {out.name for out in self.model.graph.output}
        alive = []
        for node in reversed(kept):
            if needed & set(node.output):
                alive.append(node)
                needed |= set(node.input)
        copies = [self.onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(alive)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        used = [init for init in self.model.graph.initializer if init.name in needed]
        used = [self.onnx.TensorProto.FromString(init.SerializeToString()) for init in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(used)
        if any(node.domain == DOMAIN for node in copies) and DOMAIN not in {o.domain for o in self.model.opset_import}:
            self.model.opset_import.append(self.onnx.helper.make_opsetid(DOMAIN, 1))
        return self.model


def permutation(node: Any) -> list[int]:
    """The axes of a Transpose."""
    return list(node.attribute[0].ints) if node.attribute else []


def scaled(graph: Graph, name: str) -> tuple[str, float]:
    """A value without a constant factor, and the factor."""
    node = graph.made(name, "Mul")
    factor = graph.value(node.input[1]) if node else None
    return (node.input[0], float(factor.reshape(-1)[0])) if factor is not None and factor.size == 1 else (name, 1.0)


def transposed(graph: Graph, name: str) -> str | None:
    """The value (B, H, L, D) of which this is (B, H, D, L), as the exporter transposes it; None of anything else."""
    node = graph.made(name, "Transpose")
    if node:
        return node.input[0] if permutation(node) == [0, 1, 3, 2] else None
    last = graph.made(name, "Reshape")  # (B, H, L, D) -> (B H, L, D) -> (B H, D, L) -> (B, H, D, L)
    middle = last and graph.made(last.input[0], "Transpose")
    first = middle and permutation(middle) == [0, 2, 1] and graph.made(middle.input[0], "Reshape")
    return first.input[0] if first else None


def fuse_attention(graph: Graph, softmax: Any) -> None:
    """softmax(c q k^T) v without a mask as one MultiHeadAttention, which never holds the whole matrix."""
    scores, out = graph.made(softmax.input[0], "MatMul"), graph.user(softmax.output[0], "MatMul")
    if not scores or not out or out.input[0] != softmax.output[0]:
        return
    (q, a), (right, b) = scaled(graph, scores.input[0]), scaled(graph, scores.input[1])
    k, v = transposed(graph, right), out.input[1]
    shapes = [graph.shapes.get(name, []) for name in (q, k, v)]
    if k is None or any(len(s) != 4 or not s[1] or not s[3] for s in shapes) or len({(s[1], s[3]) for s in shapes}) > 1:
        return
    heads, width, name = shapes[0][1], shapes[0][3], out.output[0]
    flat = graph.constant(f"{name}.flat", np.array([0, 0, -1]))
    rows = []
    for value in (q, k, v):
        swap = graph.made(value, "Transpose")
        if swap and permutation(swap) == HEADS:
            rows.append(swap.input[0])
        else:
            rows.append(graph.put(out, "Transpose", [value], f"{name}.{len(rows)}.rows", perm=HEADS))
        rows[-1] = graph.put(out, "Reshape", [rows[-1], flat], f"{name}.{len(rows)}.flat")
    made = graph.put(out, "MultiHeadAttention", rows, f"{name}.made", DOMAIN, num_heads=heads, scale=a * b)
    split = graph.constant(f"{name}.split", np.array([0, 0, heads, width]))
    swap = graph.user(name, "Transpose")
    if swap and permutation(swap) == HEADS:
        graph.put(swap, "Reshape", [made, split], swap.output[0])
        graph.drop(out, swap)
    else:
        made = graph.put(out, "Reshape", [made, split], f"{name}.heads")
        graph.put(out, "Transpose", [made], name, perm=HEADS)
        graph.drop(out)
