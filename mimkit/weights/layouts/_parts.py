"""What several layouts share: rules for timm's names, and functions that bring tensors into our order."""

import re

from torch import Tensor

from mimkit.types import Encoder
from mimkit.weights.layout import Rule

NO_HEAD = r"head\..+|encoder\.mask_token"  # what a file with the encoder alone need not bring
INDEX = r"(?:.+\.)?relative_position_index"  # computed, not learned
VIT = frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias"})
BEIT = frozenset({"cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias"})
MASK_TOKEN = (r"mask_token", r"encoder.mask_token")
DECODER = (
    (r"mask_token", r"head.mask_token"),
    (r"decoder_pos_embed", r"head.pos_embed"),
    (r"decoder_(blocks|embed|norm)\.(.+)", r"head.\1.\2"),
    (r"decoder_pred\.(.+)", r"head.predict.\1"),
)


def timm_names(prefix: str = "", ours: str = "encoder.timm_model") -> Rule:
    """A rule for a transformer whose names are timm's behind a prefix."""
    names = r"cls_token|pos_embed|(?:patch_embed|blocks|norm|rel_pos_bias)\..+"
    return (rf"{re.escape(prefix)}({names})", rf"{ours}.\1")


def prefixed(prefix: str, names: frozenset[str]) -> frozenset[str]:
    """Names behind a prefix."""
    return frozenset(prefix + name for name in names)


def next_stage(match: re.Match[str]) -> str:
    """Swin's patch merging: others count it to the stage that it ends, timm to the one that it begins."""
    return f"encoder.timm_model.layers.{int(match['stage']) + 1}.downsample.{match['rest']}"


def places_of_convolution(tensor: Tensor, encoder: Encoder) -> Tensor:
    """A 1x1 convolution before a pixel shuffle, as the linear layer of a head that predicts place by place.

    Rows (c, fi, p, fj, q) become (fi, fj, c, p, q): a token covers fi x fj places of p x q pixels in c channels.
    """
    tensor = tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
    fi, fj = (fine // coarse for fine, coarse in zip(encoder.grid, encoder.out_grid, strict=True))
    p, c = encoder.patch_size, encoder.in_chans
    if tensor.shape[:1] != (c * fi * p * fj * p,):
        return tensor
    return tensor.reshape(c, fi, p, fj, p, -1).permute(1, 3, 0, 2, 4, 5).reshape(tensor.shape)


CONVOLUTION = (r"head\.predict\.(?:weight|bias)", places_of_convolution)


def blocks_of_merging(tensor: Tensor, _: Encoder) -> Tensor:
    """Patch merging by `Unfold`: its last axis (c, row, column) becomes timm's (column, row, c)."""
    if not tensor.ndim or tensor.shape[-1] % 4:
        return tensor
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).reshape(tensor.shape)
