"""Shared by the tests of image tokenizers: a recipe of seconds on oblong images of 4x6 places."""

from typing import Any

import mimkit
from mimkit.model import Model

SIZE: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}
HEAD: dict[str, Any] = SIZE | {"name": "vq_decoder", "vocab_size": 16, "code_dim": 5}
PIXELS: dict[str, Any] = {"name": "pixels", "mean": [0.5] * 3, "std": [0.5] * 3}
SMALL: dict[str, Any] = {
    "method": "small",
    "image_size": [16, 24],
    "encoder": SIZE | {"name": "conv", "z_channels": 8},
    "mask": "none",
    "head": HEAD,
    "target": PIXELS,
    "loss": "l1",
    "data": {"name": "shapes", "num_images": 24, "num_test": 8, "batch_size": 8},
    "optim": {"lr": 1e-3, "weight_decay": 0.0, "betas": [0.5, 0.9]},
    "train": {"max_steps": 8},
}


def small(style: str = "taming", code_dim: int = 5, **target: Any) -> Model:
    """The recipe's model in another style."""
    parts = {"style": style}
    return mimkit.build(
        SMALL
        | {"encoder": SMALL["encoder"] | parts, "head": HEAD | parts | {"code_dim": code_dim}}
        | {"target": PIXELS | target}
    )
