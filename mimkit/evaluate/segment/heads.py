"""Segmentation heads: from an encoder's tokens to logits on a grid.

Sources: the linear head is DINOv2's (arXiv 2304.07193, section 7.4); UperNet is arXiv 1807.10221, on plain vision
transformers as BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377, appendix A.4) use it.
"""

from math import ceil, log2

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.types import Features

Map = Float[Tensor, "B D h w"]
POOLS = (1, 2, 3, 6)  # sides of the grids to which pyramid pooling reduces a map
FINEST = 4  # pixels of a place of UperNet's finest map; each further map has places twice as wide


class Linear(nn.Module):
    """Batch norm and a linear layer on each patch token; the linear layer has the norm's affine part.

    layers: none of the blocks' outputs are read.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.classify = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)

    def forward(self, features: Features) -> Map:
        """Logits (B, K, h, w) on the tokens' grid."""
        return self.classify(self.norm(to_map(features, features.sequence)))


class UperNet(nn.Module):
    """Feature pyramid over the outputs of four blocks, before the final norm, with pyramid pooling on the last.

    layers: the blocks, counted from 0: those at a quarter, half, three quarters and the whole of the depth.
    patch_size: decides how the maps, all on one grid, are brought to places of 4, 8, 16 and 32 pixels: for 16 by two
        transposed convolutions, one, none and a max pooling; for 8 as BEiT's code by one, none and two max poolings.
    channels: width of all maps inside.
    """

    def __init__(self, width: int, num_layers: int, patch_size: int, num_classes: int, channels: int):
        super().__init__()
        self.layers = tuple(ceil(num_layers * quarter / 4) - 1 for quarter in (1, 2, 3, 4))
        doublings = max(0, round(log2(patch_size / FINEST)))
        self.rescale = nn.ModuleList(_rescale(width, doublings - level) for level in range(4))
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _convolve(width, channels, 1)) for side in POOLS
        )
        self.pooled = _convolve(width + len(POOLS) * channels, channels, 3)
        self.lateral = nn.ModuleList(_convolve(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolve(channels, channels, 3) for _ in range(3))
        self.fuse = _convolve(4 * channels, channels, 3)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Features) -> Map:
        """Logits (B, K, h, w) on the finest map's grid."""
        maps = [rescale(to_map(features, layer)) for rescale, layer in zip(self.rescale, features.layers)]
        *finer, last = maps
        context = [_resized(pool(last), last) for pool in self.pools]
        merged = [self.pooled(torch.cat([last, *context], dim=1))]
        for lateral, each in zip(reversed(self.lateral), reversed(finer)):
            side = lateral(each)
            merged.insert(0, side + _resized(merged[0], side))
        smooth = [smooth(each) for smooth, each in zip(self.smooth, merged)] + merged[3:]
        return self.classify(self.fuse(torch.cat([_resized(each, smooth[0]) for each in smooth], dim=1)))


def to_map(features: Features, sequence: Float[Tensor, "B N D"]) -> Map:
    """A sequence of these features (the last one, or a block's output) as a map of its patch tokens."""
    assert features.grid is not None
    return rearrange(sequence[:, features.num_prefix_tokens :], "b (h w) d -> b d h w", h=features.grid[0]).contiguous()


def _rescale(width: int, doublings: int) -> nn.Module:
    """Doubles (or, below 0, halves) the sides of a map so many times."""
    if doublings <= 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True) if doublings else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(doublings):
        layers += [nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.GELU()]
    return nn.Sequential(*layers[:-2])


def _convolve(width: int, channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _resized(values: Map, like: Float[Tensor, "B E y x"]) -> Float[Tensor, "B D y x"]:
    return F.interpolate(values, like.shape[2:], mode="bilinear")
