"""Every network of the package as a graph: any batch, and other sizes where the network takes them."""

import pytest
import torch

from diffusion.nets import AttentionUNet
from diffusion.nets.diffusers_unet import DiffusersUNet
from diffusion.nets.onnx_graph import graph_of, inputs_of
from diffusion.nets.onnx_net import OnnxNet, facts_of
from tests.nets.test_contract import NETS, awake, make

pytest.importorskip("onnxscript", reason="pip install -e '.[test]'")
BLOCKS = {
    "block_out_channels": [32, 32], "layers_per_block": 1, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
MORE = {
    "reference": lambda: AttentionUNet(1, (8, 16), 2, 1, num_classes=3),
    "diffusers": lambda: DiffusersUNet(1, BLOCKS, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted([*NETS, *MORE]))
def test_every_network_is_a_graph(name):
    net = awake(MORE[name]() if name in MORE else make(name, num_classes=3)).eval()
    model = graph_of(net, (1, 8, 8))
    axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == list(inputs_of(net, (1, 8, 8), resizable=name != "mlp")[0].shape)
    graph = OnnxNet(model.SerializeToString(), facts_of(net))
    for batch, size in ((1, 8), (2, 8), (16, 8), *([] if name == "mlp" else [(3, 16)])):
        x, clock, y = torch.randn(batch, 1, size, size), torch.rand(batch) * 900, torch.arange(batch) % 3
        with torch.no_grad():
            for given in ((y, None), (None, None), (y, torch.arange(batch) % 4 == 0)):
                wanted = net(x, clock, *given)
                assert (graph(x, clock, *given) - wanted).norm() / wanted.norm() < 1e-5
