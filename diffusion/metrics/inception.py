"""Inception v3 with the weights and the graph of the published Frechet inception distance."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.metrics.extractor import Extractor

FILE = "pt_inception-2015-12-05-6726825d.pth"
HELP = (
    f"Inception needs its weights, {FILE} from the pytorch-fid releases on GitHub (91 MB); "
    "download the file once and pass --features Inception:FILE"
)


class Inception(nn.Module):
    """2,048 features and 1,008 logits of torchvision's graph with the three deviations of the published network.

    Average pools do not count their padding, the last block pools by maximum, and the head has 1,008 classes. Images
    are resized to 299 x 299 bilinearly (half-pixel centres, no antialiasing, as pytorch-fid), grey ones to three
    channels; float32, evaluation mode.
    Source: Heusel et al. 2017, arXiv:1706.08500; Szegedy et al. 2016, arXiv:1512.00567; the deviations: pytorch-fid.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        self.body = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
            getattr(self.body, name).branch_pool.register_forward_pre_hook(uncounted)
        last = self.body.Mixed_7c
        seen: list[Tensor] = []  # the block's input, for its pool
        last.register_forward_pre_hook(lambda block, args: seen.__setitem__(slice(None), args))
        last.branch_pool.register_forward_pre_hook(lambda block, args: (F.max_pool2d(seen.pop(), 3, 1, 1),))
        self.head, self.body.fc = self.body.fc, nn.Identity()
        self.eval().float()

    @classmethod
    def load(cls, path: str, device: torch.device | str = "cpu") -> "Inception":
        """The network with the weights of a file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has other contents.
        """
        file = Path(path).expanduser()
        if not path or not file.is_file():
            raise FileNotFoundError(f"{path or 'no file given'}: {HELP}")
        model = cls()
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            model.head.load_state_dict({k.removeprefix("fc."): v for k, v in state.items() if k.startswith("fc.")})
            model.body.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
        except Exception as error:
            raise ValueError(f"{file}: not the expected weights; {HELP}") from error
        return model.to(device)

    def train(self, mode: bool = True) -> "Inception":
        """Stay in evaluation mode: batch normalisation must not be updated."""
        return super().train(False)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> (B, 2048)."""
        return self.body(prepared(x))

    def extractor(self) -> Extractor:
        """The extractor, for images of any size."""
        return Extractor.of(self, "Inception")


def prepared(x: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, 299, 299), the network's input."""
    return F.interpolate(x.float().expand(-1, 3, -1, -1), (299, 299), mode="bilinear", align_corners=False)


def uncounted(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """Input scaled so that a zero-padded 3x3 mean becomes the mean over existing pixels: times 9 over their number."""
    x = args[0]
    there = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, stride=1, padding=1, count_include_pad=True)
    return (x / there,)
