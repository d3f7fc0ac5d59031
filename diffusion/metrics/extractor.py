"""Extractors: networks that map images to features and logits, and the images that they accept."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.metrics.base import Features
from diffusion.metrics.pixels import Pixels
from diffusion.support.processes import Processes
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.scaling import Scaling
from diffusion.support.specs import build

SELF_SUPERVISED = (
    "features: self-supervised (VICReg, trained on these images without labels); figures in them compare models of "
    "this data set and are not comparable with FID or with a classifier's"
)


class Extractor(NamedTuple):
    """A frozen network with `features(x)` and `head(features)`, for scaled images x, in [-1, 1] if 8-bit.

    The hash is computed from the weights, so that figures of two trainings are never mistaken for one another.
    """

    net: nn.Module
    name: str
    shape: tuple[int, int, int] | None  # of the images; None accepts any
    class_names: tuple[str, ...]  # of the logits; () if they are not the data's classes
    hash: str
    note: str = ""  # what distances in these features can be compared with, where a reader of the table must know

    @classmethod
    def of(cls, net: nn.Module, name: str, shape=None, class_names=(), note: str = "") -> "Extractor":
        """The extractor of a network, frozen and in evaluation mode."""
        net = net.eval().requires_grad_(False)
        return cls(net, name, None if shape is None else tuple(shape), tuple(class_names), fingerprint(net), note)

    def refuse(self, data: str, shape: tuple[int, int, int], class_names: tuple[str, ...]) -> str:
        """The reason why this extractor does not fit a data set; empty if it does."""
        if self.shape is not None and self.shape != tuple(shape):
            ours, theirs = ("x".join(map(str, s)) for s in (self.shape, shape))
            return f"{self.name} takes images of {ours}, and those of {data} are {theirs}"
        if self.shape is None and shape[0] not in (1, 3):
            return f"{self.name} takes 1 or 3 channels, and images of {data} have {shape[0]}"
        if self.class_names and self.class_names != tuple(class_names):
            return f"{self.name} knows {some(self.class_names)}, and the classes of {data} are {some(class_names)}"
        return ""

    @torch.no_grad()
    def describe(
        self,
        images: Tensor | Pixels,
        labels: Tensor | None,
        batch: int = 256,
        tell=lambda n: None,
        processes: Processes = Processes(),
        scaling: Scaling = Scaling(),
    ) -> Features:
        """The features of raw images (N, C, H, W), or of a data set's, with labels (N,) or one-hot contexts (N, K).

        Args:
            tell: called with the number of images done, after each batch.
            processes: share the images; each receives all features.
            scaling: from raw values to x.
        """
        device = next(self.net.parameters()).device
        pixels = images if isinstance(images, Pixels) else scaling.encode(images)
        mine, found, done = pixels[processes.part(len(pixels))], [], 0
        for part in mine.split(batch):
            features = self.net.features(part.to(device))
            outputs = features, self.net.head(features)
            # Allocated at once: small tensors kept between large ones that are freed would fragment the heap.
            found = found or [torch.empty(len(mine), v.shape[1]) for v in outputs]
            for kept, output in zip(found, outputs, strict=True):
                kept[done : done + len(part)] = output.float().cpu()
            done += len(part)
            tell(len(part))
        features, logits = map(processes.gather, found)
        return Features(pixels, features, logits, to_labels(labels))


def load_extractor(path: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of a trained `Classifier` or `VICReg`, frozen, for the images and classes that it was trained on.

    Args:
        path: run directory, experiment folder, or checkpoint file.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a valid checkpoint of either.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    parts = checkpoint["hyper_parameters"]
    blind = "covariance" in parts  # trained by VICReg
    if not blind and "degrees" not in parts or "schedule" in parts:  # a denoiser, or a classifier of noisy images
        raise ValueError(
            f"{file}: not a classifier and not a VICReg; train one with: diffusion fit -c configs/features_mnist.yaml"
        )
    net = build(parts["net"])
    state = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: the weights do not fit the network that the file describes: {error}") from error
    if blind:
        return Extractor.of(net.to(device), "VICReg", parts["shape"], note=SELF_SUPERVISED)
    return Extractor.of(net.to(device), type(net).__name__, parts["shape"], parts["class_names"])


def to_labels(y: Tensor | None) -> Tensor | None:
    """Labels (N,) unchanged; the index of the largest entry of contexts (N, K)."""
    return y.argmax(1) if y is not None and y.ndim > 1 else y


def fingerprint(*what: nn.Module | Tensor | Pixels) -> str:
    """12 hexadecimal digits of the SHA-256 of tensors and weights in memory, and of raw images of a data set.

    Images of a source that knows a fingerprint are not read.
    """
    digest = hashlib.sha256()
    for item in what:
        if isinstance(item, Pixels):
            known = getattr(item.source, "fingerprint", "")
            digest.update(known.encode() if known else str((item.source.dtype, tuple(item.shape))).encode())
            for raw in () if known else item.raw():
                digest.update(raw.contiguous().numpy().tobytes())
            continue
        for value in item.state_dict().values() if isinstance(item, nn.Module) else [item]:
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def some(names: tuple[str, ...]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
