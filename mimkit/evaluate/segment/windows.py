"""Logits of images that are larger than what a network reads: windows slide over them, and what overlaps is averaged."""

from collections.abc import Callable
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Images, Size


def sliding_logits(
    network: Callable[[Images], Float[Tensor, "B K h w"]], images: Images, window: Size, stride: Size
) -> Float[Tensor, "B K H W"]:
    """Logits of images (B, C, H, W), the mean of those of all windows that cover a pixel.

    network: logits of images of the size `window`, which is at most the images'.
    """
    (h, w), (height, width) = window, images.shape[2:]
    total: Tensor | None = None
    covered = torch.zeros(height, width, device=images.device)
    for top in starts(height, h, stride[0]):
        for left in starts(width, w, stride[1]):
            place = (..., slice(top, top + h), slice(left, left + w))
            logits = network(images[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            covered[place] += 1
    assert total is not None
    return total / covered


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last one is shifted inside."""
    return [min(number * stride, length - window) for number in range(ceil((length - window) / stride) + 1)]
