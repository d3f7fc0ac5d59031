"""Weights of an ONNX graph stored in fewer bits; the graph converts them back, and computes in float32.

fp16    w = Cast(half(w)), half of the size
int8    w = Cast(q) scale, q = round(w / scale), scale = max |w| / 127 of each output channel: a quarter
"""

from typing import Any, Literal

import numpy as np

from diffusion.support.extras import extra

LEAST = 256  # smaller arrays stay in float32: norms, biases, and what they save is nothing
HALF = 65504.0  # the largest number of float16


def stored(model: Any, storage: Literal["fp32", "fp16", "int8"]) -> Any:
    """The model, an onnx.ModelProto, with its weights stored this way; changed in place.

    Raises:
        ValueError: a weight is beyond float16.
    """
    if storage == "fp32":
        return model
    onnx = extra("onnx", "export")
    kept, nodes = [], []
    axes = output_axes(model.graph)
    for old in model.graph.initializer:
        if old.data_type != onnx.TensorProto.FLOAT or np.prod(old.dims) < LEAST or len(old.dims) < 2:
            kept.append(old)
            continue
        w, name = onnx.numpy_helper.to_array(old), old.name
        if storage == "fp16":
            if np.abs(w).max() > HALF:
                raise ValueError(f"{name}: a weight of {np.abs(w).max():.3g} is beyond float16; use fp32 or int8")
            kept.append(onnx.numpy_helper.from_array(w.astype(np.float16), f"{name}.half"))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
            continue
        axis = axes.get(name, 0)
        others = tuple(k for k in range(w.ndim) if k != axis % w.ndim)
        largest = np.abs(w).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        kept.append(onnx.numpy_helper.from_array(np.rint(w / scale).astype(np.int8), f"{name}.int8"))
        kept.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(onnx.helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]))
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return model


def output_axes(graph: Any) -> dict[str, int]:
    """The axis of the output channels of the weights for which it is not the first."""
    found = {}
    for node in graph.node:
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "ConvTranspose" or node.op_type == "Gemm" and not turned:
            found[node.input[1]] = 1
        elif node.op_type == "MatMul":
            found[node.input[1]] = -1
    return found
