"""Shared by the tests of the quantizer and its codebook."""

import math

import torch

from mimkit.heads.quantizer import Quantizer
from mimkit.types import Features, Mask

GRID, WIDTH, OUT = (2, 3), 10, 7
TINY = {"vocab_size": 12, "code_dim": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}


def quantizer(**options):
    """A tiny head in float64, its biases and norms away from 0 and 1."""
    torch.manual_seed(4)
    head = Quantizer(encoder_dim=WIDTH, out_dim=OUT, grid=GRID, **TINY | options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.3, std=0.3)
    return head


def batch(seed, images=5):
    """Tokens with a class token before them, a target, and the mask that hides nothing."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, 1 + math.prod(GRID), WIDTH, dtype=torch.float64, generator=generator)
    wanted = torch.randn(images, math.prod(GRID), OUT, dtype=torch.float64, generator=generator)
    hidden = torch.zeros(images, math.prod(GRID), dtype=torch.bool)
    return tokens, wanted, Mask.from_hidden(hidden, predicted=~hidden, grid=GRID)


def run(head, tokens, mask):
    return head(Features(tokens, num_prefix_tokens=1, grid=GRID), mask)
