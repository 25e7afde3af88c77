"""Shared by the tests of MAGE: tiny tokenizers in folders, and models that read their codes."""

from pathlib import Path
from typing import Any

import torch

import mimkit
from mimkit.model import Model
from mimkit.weights.tokenizer import save_tokenizer

CODES, PLACES = 12, 16  # of 16 x 16 pixels in patches of 4
ENCODER = {"name": "mage", "embed_dim": 24, "depth": 2, "num_heads": 2}
HEAD = {"name": "code_decoder", "embed_dim": 16, "depth": 2, "num_heads": 4}
COMMON = {"method": "test", "image_size": 16, "optim": {"lr": 1e-3}, "train": {"epochs": 1}}
VQKD = {
    "encoder": {"name": "vit", "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4},
    "mask": "none",
    "head": {"name": "quantizer", "vocab_size": CODES, "code_dim": 4, "embed_dim": 12, "depth": 1, "num_heads": 2},
    "target": "pixels",
}

CONV = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "style": "maskgit"}
VQGAN = {
    "encoder": {"name": "conv", "z_channels": 8, **CONV},
    "mask": "none",
    "head": {"name": "vq_decoder", "vocab_size": CODES, "code_dim": 8, **CONV},
    "target": {"name": "pixels", "mean": [0.0] * 3, "std": [1.0] * 3},
}


def save_vqgan(folder: Path, **tree: Any) -> str:
    """A tokenizer that paints, with random weights and codes among its tokens."""
    torch.manual_seed(4)
    model = mimkit.build(COMMON | VQGAN | tree)
    tokens = model.encoder(torch.rand(20, 3, *model.encoder.image_size)).tokens.flatten(0, 1)
    model.objectives["main"].head.codebook.weight.data.copy_(tokens[torch.randperm(len(tokens))[:CODES]])
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, model)
    return str(folder)


def save_vqkd(folder: Path, **tree: Any) -> str:
    """A tokenizer without a way back to images, its codebook filled by one batch."""
    torch.manual_seed(3)
    model = mimkit.build(COMMON | VQKD | tree)
    model.train()(torch.rand(20, model.encoder.in_chans, *model.encoder.image_size))
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, model)
    return str(folder)


def mage(tokenizer: str, *overrides: str, dropout: float = 0.0, **tree: Any) -> Model:
    """A model on that tokenizer's codes."""
    torch.manual_seed(5)
    own = {
        "encoder": ENCODER | {"tokenizer": tokenizer, "dropout": dropout},
        "mask": "variable",
        "head": HEAD | {"dropout": dropout},
        "target": "codes",
        "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
    }
    return mimkit.build(COMMON | own | tree, *overrides)
