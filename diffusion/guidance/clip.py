"""ClipPrompt: a CondFn by a pretrained CLIP model, towards images that fit a text."""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.guidance.guides import settle
from diffusion.guidance.steer import Likelihood
from diffusion.noise.level import Level
from diffusion.support.pretrained import Pretrained, folder_of, hash_of, limit, load, tokenizer_of

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's own images
CROPS = 4
SMALLEST = 0.6  # side of a crop, as a share of the image's


class ClipPrompt(Likelihood):
    """The agreement of a predicted image with a text, as CLIP sees it.

        log p = l mean_k cos(image(crop_k(x0)), text(prompt)),    l = CLIP's own logit scale, 100

    CLIP was trained with softmax(l cos) over texts, so this is its log p(text | image) up to a constant. It sees the
    predicted x_0 in place of noisy images, so no noisy CLIP has to be trained. Crops average out changes that only
    confuse CLIP; they are the same in every step. Values of x_0 lie in [-1, 1]; one channel is seen as grey.
    Source: Nichol et al. 2021 (GLIDE), arXiv:2112.10741, sec. 2.4; the crops: Crowson 2021, "CLIP guided diffusion".

    Args:
        prompt: what the pictures show.
        clip: folder of a CLIP model as transformers saves it, with weights, tokenizer and configuration.
        crops: of the image beside the whole of it, >= 0; each costs another pass through CLIP.
        hash: of the folder's files, filled in automatically; others are then rejected.
    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such folder, or it lacks files.
        ValueError: an empty prompt, crops < 0, a folder of another model, or one that has changed.
    """

    def __init__(self, prompt: str, clip: str, crops: int = CROPS, hash: str = "") -> None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"clip_prompt: wanted what the pictures show, got {prompt!r}; leave it out for nothing")
        if crops < 0:
            raise ValueError(f"ClipPrompt: wanted crops >= 0, got {crops}")
        self.prompt, self.clip, self.crops, self.hash = prompt, str(clip), crops, hash_of(clip)
        if hash and hash != self.hash:
            raise ValueError(f"{clip}: has changed since it was chosen as a guide: expected {hash}, got {self.hash}")
        self._clip = load(clip, "CLIPModel")
        self._wanted = self._text()
        self._mean, self._std = normalization(folder_of(clip))
        draws = torch.Generator().manual_seed(0)
        self._draws = torch.rand(crops, 3, generator=draws).tolist()  # side, top, left; in [0, 1)

    def _text(self) -> Tensor:
        """The unit vector (1, P) of the prompt, whose tokens beyond CLIP's limit are left out."""
        tokenizer, most = tokenizer_of(self.clip), limit(self.clip)
        given = tokenizer([self.prompt], truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            features = self._clip.text_model(given["input_ids"], attention_mask=given["attention_mask"]).pooler_output
            return F.normalize(self._clip.text_projection(features), dim=-1)

    @property
    def hint(self) -> str:
        """What of the prompt CLIP does not read as it stands, in one line; "" if it reads all."""
        return Pretrained((), limit(self.clip), self.clip).hint(self.prompt)

    def log_p(self, x0: Tensor, t: Level) -> Tensor:
        if x0.shape[1] not in (1, 3):
            raise ValueError(f"clip_prompt: CLIP sees grey or RGB images, and these have {x0.shape[1]} channels")
        settle(self._clip, x0)
        views = torch.stack([self.seen(view) for view in self.views(x0)], dim=1)  # (B, 1 + crops, 3, S, S)
        cosines = self.cosines(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return self._clip.logit_scale.exp() * cosines.mean(1)

    def cosines(self, pixels: Tensor) -> Tensor:
        """cos of images (B, 3, S, S), as CLIP takes them, and the prompt (B,)."""
        features = self._clip.visual_projection(self._clip.vision_model(pixels).pooler_output)
        return (F.normalize(features, dim=-1) * self._wanted.to(features)).sum(-1)

    def views(self, x0: Tensor) -> list[Tensor]:
        """The images (B, C, H, W), and square crops of them at drawn places."""
        found, (H, W) = [x0], x0.shape[-2:]
        for share, top, left in self._draws:
            side = max(1, round((SMALLEST + (1 - SMALLEST) * share) * min(H, W)))
            y, x = (min(int(u * (n - side + 1)), n - side) for u, n in ((top, H), (left, W)))
            found.append(x0[:, :, y : y + side, x : x + side])
        return found

    def seen(self, view: Tensor) -> Tensor:
        """Images (B, C, h, w) in [-1, 1] as CLIP takes them: (B, 3, S, S), of its mean and standard deviation."""
        side = self._clip.config.vision_config.image_size
        view = F.interpolate(view.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v, device=view.device)[:, None, None] for v in (self._mean, self._std))
        return ((view.expand(-1, 3, -1, -1) + 1) / 2 - mean) / std


def normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of a CLIP model's images, in [0, 1]: those of the folder, or else of OpenAI's."""
    try:
        known = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = ([float(v) for v in known[name]] for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError):
        return list(MEAN), list(STD)
    return (mean, std) if len(mean) == len(std) == 3 and min(std) > 0 else (list(MEAN), list(STD))
