"""Tiny text models with random weights, in the files that `transformers` saves, for tests."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed: ./setup.sh text")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402

LIMIT = 16  # tokens of the tiny CLIP
WORDS = ("a", "red", "cat", "blue", "dog")


def clip(folder: Path, seed: int = 0, **vision) -> str:
    """A CLIP of both towers, whose tokens are the bytes."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"projection_dim": 8}
    text = size | {"vocab_size": 600, "max_position_embeddings": LIMIT, "bos_token_id": 256, "eos_token_id": 257}
    seen = size | {"image_size": 16, "patch_size": 8} | vision
    config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)
    model = transformers.CLIPModel(config)
    for p in model.parameters():  # the usual start is so small that no two texts differ
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, "<|startoftext|>", "<|endoftext|>", *(sign + "</w>" for sign in alphabet)]
    transformers.CLIPTokenizer(vocab={piece: k for k, piece in enumerate(known)}, merges=[]).save_pretrained(folder)
    return str(folder)


def t5(folder: Path, seed: int = 0) -> str:
    """A T5, both halves, whose tokens are five words and the letters of the Latin alphabet."""
    torch.manual_seed(seed)
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5Model(config).save_pretrained(folder)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("\u2581" + word, -1.0) for word in WORDS)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz\u2581"]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(folder)
    return str(folder)
