"""FrozenTextEncoder: a pretrained text model, which is not trained, as the encoder of captions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from diffusion.nets.text import BaseTextEncoder, TextEncoder
from diffusion.support.pretrained import Pretrained, kind_of, text_model, tokens_of
from diffusion.support.tokens import PAD


class FrozenTextEncoder(BaseTextEncoder):
    """Outputs for a text's tokens, and one for the whole text, from the features of a frozen model.

        outputs = Linear(norm(features)),    the whole text: CLIP's features of the last token, or T5's mean

    The frozen model is no part of the state: checkpoints have its folder and hash, and the Linear alone is trained.
    Padding and the null condition are those of `TextEncoder`.

    Args:
        tokens: of the pretrained model, plain.
        width: features W of an output.
    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: the model's folder is missing.
        ValueError: the folder has changed.
    """

    def __init__(self, tokens: dict[str, Any], width: int = 128) -> None:
        super().__init__()
        vocabulary = tokens_of(tokens)
        self.width, self.length = width, vocabulary.length
        self.last = kind_of(vocabulary.folder) != "t5"
        model = text_model(vocabulary)
        self.frozen = (model,)  # in a tuple, so that it is no submodule
        self.proj = nn.Linear(model.config.hidden_size, width)
        self.null = nn.Parameter(torch.randn(2, width))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves the frozen model with the rest."""
        self.frozen[0]._apply(fn)
        return super()._apply(fn, recurse)

    def encode(self, ids: Tensor) -> Tensor:
        self.check(ids)
        there = ids != PAD
        some = there.any(1, keepdim=True)
        h = self.features(ids, there | ~some)
        if self.last:
            at = (there.sum(1) - 1).clamp(min=0)
            whole = h[torch.arange(len(h), device=h.device), at]
        else:
            whole = (h * there[:, :, None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        h = torch.cat([whole[:, None], h], dim=1)
        out = self.proj(F.layer_norm(h, h.shape[-1:]).to(self.proj.weight.dtype))
        return self.nulled(out, some, there)

    @_disable_dynamo  # torch.compiler.disable would import the compiler, as long as torch itself takes
    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The frozen model's features (B, L, H) of tokens (B, L), of which only those of the mask are read."""
        with torch.no_grad():
            return self.frozen[0](input_ids=(ids - 1).clamp(min=0), attention_mask=mask.long()).last_hidden_state


def text_encoder(tokens: dict[str, Any] | None, width: int, depth: int) -> BaseTextEncoder | None:
    """The text encoder of a network: a frozen one for pretrained tokens, else one that is trained; None without."""
    if not tokens:
        return None
    if isinstance(tokens_of(tokens), Pretrained):
        return FrozenTextEncoder(tokens, width)
    return TextEncoder(tokens, width, depth)
