"""Graphs with ONNX Runtime's operator for attention are the same function; batches in parts give the same rows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.nets import AttentionUNet
from diffusion.nets.onnx_graph import graph_of, session
from diffusion.nets.onnx_net import OnnxNet, accelerated, facts_of, largest
from diffusion.nets.onnx_tuned import tuned

onnx = pytest.importorskip("onnx", reason="pip install -e '.[test]'")
helper = onnx.helper
HEADS, WIDTH, LENGTH = 2, 4, 6


def attention(swap: bool, factor: float = 0.5, mask: bool = False) -> onnx.ModelProto:
    """softmax(factor q k^T) v of x split into heads, as the exporter writes it; with `swap` one Transpose makes k^T."""
    numbers = {
        "heads": [0, 0, HEADS, WIDTH], "flat": [0, 0, HEADS * WIDTH], "three": [-1, LENGTH, WIDTH],
        "four": [-1, HEADS, WIDTH, LENGTH],
    }  # fmt: skip
    constants = [onnx.numpy_helper.from_array(torch.tensor(v).numpy(), k) for k, v in numbers.items()]
    constants.append(onnx.numpy_helper.from_array(torch.tensor([factor]).numpy(), "factor"))
    constants.append(onnx.numpy_helper.from_array(torch.full((1, 1, 1, LENGTH), -1.0).numpy(), "mask"))
    nodes = [
        helper.make_node("Reshape", ["x", "heads"], ["split"]),
        helper.make_node("Transpose", ["split"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Mul", ["q", "factor"], ["scaled"]),
    ]
    if swap:
        nodes.append(helper.make_node("Transpose", ["q"], ["kt"], perm=[0, 1, 3, 2]))
    else:
        nodes += [
            helper.make_node("Reshape", ["q", "three"], ["k3"]),
            helper.make_node("Transpose", ["k3"], ["kt3"], perm=[0, 2, 1]),
            helper.make_node("Reshape", ["kt3", "four"], ["kt"]),
        ]
    nodes.append(helper.make_node("MatMul", ["scaled", "kt"], ["raw"]))
    if mask:
        nodes.append(helper.make_node("Add", ["raw", "mask"], ["scores"]))
    nodes += [
        helper.make_node("Softmax", ["scores" if mask else "raw"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "q"], ["out4"]),
        helper.make_node("Transpose", ["out4"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "flat"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info(n, 1, ["batch", LENGTH, HEADS * WIDTH]) for n in ("x", "out")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("swap", [True, False])
def test_attention_becomes_one_operator_of_the_same_value(swap):
    x = torch.randn(3, LENGTH, HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    heads = x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    wanted = F.scaled_dot_product_attention(heads, heads, heads, scale=0.5).transpose(1, 2).flatten(2)
    plain, made = attention(swap), tuned(attention(swap))
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("MultiHeadAttention") == 1 and not {"Softmax", "MatMul", "Mul", "Transpose"} & set(kinds)
    for model in (plain, made):
        (found,) = session(model.SerializeToString()).run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_attention_with_a_mask_is_left_as_it_is():
    wanted = [node.op_type for node in attention(True, mask=True).graph.node]
    assert [node.op_type for node in tuned(attention(True, mask=True)).graph.node] == wanted


class Shifted(nn.Module):
    """A network of a single convolution, whose output depends on the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, clock, y=None, keep=None):
        return self.conv(x) + clock[:, None, None, None]


@pytest.mark.slow
def test_parts_of_a_batch_give_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    net = Shifted().eval()
    assert largest(net, (1, 4, 6)) == 4 * 24
    graph = graph_of(net, (1, 4, 6), resizable=False).SerializeToString()
    x, clock = torch.randn(7, 1, 4, 6), torch.arange(7.0)
    whole = OnnxNet(graph, facts_of(net))(x, clock)
    torch.testing.assert_close(whole, net(x, clock).detach())
    for rows in (1, 2, 3, 7, 100):
        parts = OnnxNet(graph, facts_of(net), rows=rows)(x, clock)
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_network_with_attention_keeps_its_function(tmp_path, monkeypatch):
    """Also for labels, of which some are dropped; the operator is in the graph that is kept."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    torch.manual_seed(0)
    net = AttentionUNet(1, widths=(8, 16, 16), heads=2, ones=True, num_classes=3).eval()
    engine = accelerated(net, (1, 8, 8))
    x, clock, y = torch.randn(5, 1, 8, 8), torch.linspace(1, 900, 5), torch.tensor([0, 1, 2, 0, 1])
    keep = torch.tensor([True, False, True, True, False])
    with torch.no_grad():
        torch.testing.assert_close(engine(x, clock, y, keep), net(x, clock, y, keep), rtol=1e-4, atol=1e-4)
    (kept,) = (tmp_path / "engines").iterdir()
    assert "MultiHeadAttention" in {node.op_type for node in onnx.load(kept).graph.node}
