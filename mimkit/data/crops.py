"""Geometry: which box of an image is seen, and how the box becomes an image of the wanted size.

A box is (top, left, height, width) in pixels of the whole image. Boxes become images by antialiased bicubic
resampling as Pillow's (a = -0.5; the box is cut out first, so pixels outside of it have no weight).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mimkit.data.source import Picture, Size

DRAWS = 24  # numbers in [0, 1) per sample and epoch: 10 attempts of (area, ratio), top, left, flip, one spare
ATTEMPTS = 10
TABLE_LENGTH = 64  # pixels of a side up to which the weights of all its boxes are kept (67 MB at 64 to 64)


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop with flip; the algorithm of torchvision's RandomResizedCrop.

    scale: smallest and largest area of the crop, as a fraction of the image's.
    ratio: smallest and largest ratio of width to height of the crop, before it is resized.
    flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def boxes(self, sizes: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes int64 (B, 4) and flips bool (B,) for images of `sizes` (B, 2), from `draws` (B, 24) in [0, 1)."""
        height, width = sizes[:, :1].astype(np.int64), sizes[:, 1:].astype(np.int64)  # (B, 1)
        low, high = np.log(self.ratio)
        area = height * width * (self.scale[0] + draws[:, 0:20:2] * (self.scale[1] - self.scale[0]))  # (B, 10)
        ratio = np.exp(low + draws[:, 1:20:2] * (high - low))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.argmax(1)[:, None]
        found = fits.any(1)
        fallback_h, fallback_w = self._fallback(height[:, 0], width[:, 0])
        h = np.where(found, np.take_along_axis(h, first, 1)[:, 0], fallback_h)
        w = np.where(found, np.take_along_axis(w, first, 1)[:, 0], fallback_w)
        room_y, room_x = height[:, 0] - h, width[:, 0] - w
        top = np.where(found, (draws[:, 20] * (room_y + 1)).astype(np.int64), room_y // 2)
        left = np.where(found, (draws[:, 21] * (room_x + 1)).astype(np.int64), room_x // 2)
        return np.stack([top, left, h, w], axis=1), draws[:, 22] < self.flip

    def _fallback(self, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest central crop within the bounds of `ratio`."""
        low, high = self.ratio
        h = np.where(width / height < low, np.rint(width / low), height)
        w = np.where(width / height > high, np.rint(height * high), width)
        return np.clip(h, 1, height).astype(np.int64), np.clip(w, 1, width).astype(np.int64)


def center_box(image: Size, size: Size) -> tuple[int, int, int, int]:
    """The evaluation view: the largest central box of an `image` (H, W) with the shape of `size` (h, w)."""
    height = min(image[0], max(1, round(image[1] * size[0] / size[1])))
    width = min(image[1], max(1, round(image[0] * size[1] / size[0])))
    return (image[0] - height) // 2, (image[1] - width) // 2, height, width


def render(
    picture: Picture, box: tuple[int, int, int, int], flip: bool, size: Size, in_chans: int
) -> UInt8[Tensor, "C h w"]:
    """One picture's box at `size`. A box of at least twice the size is decoded at a smaller scale where the format
    can; its edges are then rounded to the smaller pixels. Raises BadImage.
    """
    top, left, height, width = box
    full_height, full_width = picture.size
    enough = (ceil(full_height * size[0] / height), ceil(full_width * size[1] / width))
    image = picture.pixels(in_chans, enough)
    if (image.shape[1], image.shape[2]) != picture.size:
        y, x = image.shape[1] / full_height, image.shape[2] / full_width
        top, left, height, width = round(top * y), round(left * x), round(height * y), round(width * x)
    image = image[:, top : top + height, left : left + width]
    if image.shape[1:] != size:
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
    return image.flip(-1) if flip else image


def resized_crop(
    images: UInt8[Tensor, "B C H W"], boxes: Int[Tensor, "B 4"], flips: Bool[Tensor, " B"], size: Size
) -> UInt8[Tensor, "B C h w"]:
    """A whole batch of boxes at `size` (h, w), on the images' device: two batched matrix products.

    As Pillow and torch, rounded to 8 bits between the two; columns first as torch (Pillow 13: the cheaper first).
    """
    top, left, box_height, box_width = boxes.unbind(1)
    columns = weights_of(images.shape[3], left, box_width, size[1])  # (B, w, W)
    columns = columns.flip(1).where(flips[:, None, None], columns)
    rows = weights_of(images.shape[2], top, box_height, size[0])  # (B, h, H)
    batch, channels, height, _ = images.shape
    across = torch.bmm(images.flatten(1, 2).float(), columns.mT).round_().clamp_(0, 255)  # (B, C·H, w)
    across = across.view(batch, channels, height, size[1])
    out = torch.empty((batch, channels, *size), dtype=torch.uint8, device=images.device)
    for channel in range(channels):
        out[:, channel] = torch.bmm(rows, across[:, channel]).round_().clamp_(0, 255)
    return out


def weights_of(
    length: int, start: Int[Tensor, " B"], extent: Int[Tensor, " B"], size: int
) -> Float[Tensor, "B size length"]:
    """As `bicubic_weights`; of a short side every box's weights are computed once and looked up."""
    if length > TABLE_LENGTH:
        return bicubic_weights(length, start, extent, size)
    return weight_table(length, size, start.device)[start * length + extent - 1]


@lru_cache(maxsize=4)
def weight_table(length: int, size: int, device: torch.device) -> Float[Tensor, "boxes size length"]:
    """Weights of the boxes from `start` over `extent`, at start * length + extent - 1."""
    pixels = torch.arange(length, device=device)
    return bicubic_weights(length, pixels.repeat_interleave(length), pixels.repeat(length) + 1, size)


def bicubic_weights(
    length: int, start: Int[Tensor, " B"], extent: Int[Tensor, " B"], size: int
) -> Float[Tensor, "B size length"]:
    """Weights of `length` pixels in each of `size` pixels that stand for the box from `start` over `extent`.

    Rows sum to 1. The kernel is Keys' with a = -0.5, widened by extent / size where the box is reduced.
    """
    start, extent = start[:, None, None].float(), extent[:, None, None].float()
    scale = extent / size
    center = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(length, device=start.device) + 0.5
    inside = (pixel > start) & (pixel < start + extent)  # (B, 1, length)
    x = ((pixel - center) / scale.clamp(min=1)).abs_().where(inside, 2).clamp_(max=2)  # at 2 the kernel is 0
    near = (1.5 * x).sub_(2.5).mul_(x).mul_(x).add_(1)
    far = (-0.5 * x).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    weights = near.where(x < 1, far)
    return weights.div_(weights.sum(2, keepdim=True))
