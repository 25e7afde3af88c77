"""Training batches: boxes drawn at random scales, the same for the same seed and step."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.draws import Stream, permutation, uniforms
from mimkit.evaluate.segment.data import MaskedImages
from mimkit.types import Size

SCALE = (0.5, 2.0)  # of the image, as in mmsegmentation's settings for UperNet
FLIP = 0.5  # probability of a horizontal flip


@dataclass(frozen=True)
class Crops:
    """Random crops of images and masks.

    size: height and width that stand for a whole image at scale 1. crop: height and width of what is cut out; the scale
    is raised where the image would be smaller, so that nothing need be padded.
    """

    images: MaskedImages
    size: Size
    crop: Size
    in_chans: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> tuple[UInt8[Tensor, "B C h w"], UInt8[Tensor, "B h w"]]:
        """Images and masks of a step: the images go by in a new order in each epoch, cut anew each time."""
        count = len(self.images)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        indices, draws = [], []
        for epoch in np.unique(places // count):
            rows = places[places // count == epoch] % count
            chosen = permutation(self.seed, int(epoch), count)[rows]
            indices.append(chosen)
            draws += [uniforms(self.seed, int(epoch), Stream.CROP, range(i, i + 1), 4) for i in chosen]
        index = np.concatenate(indices)
        boxes, flips = self.boxes(self.images.sizes[index], np.concatenate(draws))
        return self.images.read(index, boxes, flips, self.crop, self.in_chans)

    def boxes(self, sizes: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes int64 (B, 4) and flips bool (B,) for images of `sizes` (B, 2), from `draws` (B, 4) in [0, 1)."""
        share = np.array(self.crop) / self.size  # of the image that a crop at scale 1 shows
        scale = np.maximum(SCALE[0] + draws[:, :1] * (SCALE[1] - SCALE[0]), share.max())
        extent = np.clip(np.rint(sizes * share / scale), 1, sizes).astype(np.int64)
        start = (draws[:, 1:3] * (sizes - extent + 1)).astype(np.int64)
        return np.concatenate([start, extent], axis=1), draws[:, 3] < FLIP
