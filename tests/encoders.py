"""Shared by the tests of encoders: one of each kind, with random weights everywhere."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mimkit import registry
from mimkit.types import Encoder

BEIT = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 5}


SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "patch_size": 4}


CASES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "beit-shared": ("beit", (35, 55), BEIT),
    "beit-block": ("beit", (35, 55), {**BEIT, "rel_pos": "block", "init_values": None}),
    "beit-absolute": ("beit", (35, 55), {**BEIT, "rel_pos": "none", "abs_pos": True}),
    "swin": ("swin", (32, 64), SWIN),  # the second stage has 4x8 tokens: shifted along the columns only
    "timm-convnext": ("timm", (64, 96), {"model": "test_convnext"}),
    "timm-vit": ("timm", (32, 48), {"model": "test_vit", "patch_size": 8}),
    "timm-swin": ("timm", (64, 96), {"model": "swin_tiny_patch4_window7_224"}),
}


def make(case: str, feed: str = "all", **more: Any) -> Encoder:
    """Random weights everywhere, so that biases, norms and tables count."""
    name, size, options = CASES[case]
    torch.manual_seed(5)
    encoder = registry.build("encoder", name, {**options, **more}, {"image_size": size, "feed": feed})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.1)
    return encoder.eval()


def pictures(encoder: Encoder, batch: int = 2) -> Tensor:
    shape = (batch, encoder.in_chans, *encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def some_hidden(encoder: Encoder) -> Tensor:
    """Unequal numbers of hidden places."""
    draws = torch.rand(2, math.prod(encoder.grid), generator=torch.Generator().manual_seed(2))
    return draws < torch.tensor([[0.6], [0.3]])


def in_raster_order(out: Tensor, dim: int) -> Tensor:
    """A sequence, an NCHW or an NHWC map as a sequence."""
    if out.ndim == 4:
        out = (out if out.shape[3] == dim else out.permute(0, 2, 3, 1)).flatten(1, 2)
    return out
