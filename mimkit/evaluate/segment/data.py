"""Images with masks, looked through once, then read as boxes at a wanted size.

A mask is a PNG with a class index per pixel (mode L or P), as large as its image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.crops import render
from mimkit.data.decode import EncodedPicture, one_line, open_image
from mimkit.data.source import BadImage, Picture
from mimkit.errors import UserError
from mimkit.evaluate.segment.pairs import Pairs, find_pairs
from mimkit.progress import Progress
from mimkit.types import Size

VALUES = 256  # that a pixel of a mask can have
AT_ONCE = 64  # masks looked through between two words on how far it is


@dataclass(frozen=True)
class MaskedImages:
    """Pairs that fit each other.

    sizes: heights and widths, (N, 2). holds: (N, 256), which values occur in each mask.
    """

    pairs: Pairs
    sizes: np.ndarray
    holds: np.ndarray

    @property
    def name(self) -> str:
        """Of the split."""
        return self.pairs.name

    def values(self, ignore: int) -> np.ndarray:
        """The values that occur in the masks, without `ignore`, rising."""
        found = np.flatnonzero(self.holds.any(axis=0))
        return found[found != ignore]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(
        self, indices: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: Size, in_chans: int
    ) -> tuple[UInt8[Tensor, "B C h w"], UInt8[Tensor, "B h w"]]:
        """Boxes (B, 4) = (top, left, height, width) of the images at `indices`, at `size`: bicubic; masks by the nearest pixel.

        flips: (B,), which are mirrored. Raises UserError for an image that cannot be read.
        """

        def cut(row: int) -> tuple[Tensor, Tensor]:
            index, flip = int(indices[row]), bool(flips[row])
            top, left, height, width = map(int, boxes[row])
            try:
                image = render(_picture(self.pairs.images[index]), (top, left, height, width), flip, size, in_chans)
            except BadImage as error:
                raise UserError(f"{self.pairs.images[index]}: {error}") from None
            mask = torch.from_numpy(read_mask(self.pairs.masks[index]))[top : top + height, left : left + width]
            mask = F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]
            return image, mask.flip(-1) if flip else mask

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            images, masks = zip(*threads.map(cut, range(len(indices))), strict=True)
        return torch.stack(images), torch.stack(masks)

    def whole(
        self, indices: np.ndarray, size: Size, in_chans: int
    ) -> tuple[UInt8[Tensor, "B C h w"], UInt8[Tensor, "B h w"]]:
        """The whole images at `indices` and their masks, at `size`. Raises UserError as `read`."""
        sizes = self.sizes[indices]
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        return self.read(indices, boxes, np.zeros(len(indices), dtype=bool), size, in_chans)


def open_masked(
    folder: Path, ignore: int, classes: Sequence[str] | None
) -> tuple[MaskedImages, MaskedImages, Sequence[str]]:
    """Images with masks to train on and to test on, and the classes' names; every mask is looked through.

    ignore: value of pixels without a class. classes: names from class 0 on; None is numbers, up to the highest one in
    the training masks. Raises UserError where masks are of another kind, or hold classes that cannot be learned.
    """
    train, test = (_survey(pairs) for pairs in find_pairs(folder))
    learned = train.values(ignore)
    if len(learned) < 2:
        raise UserError(
            f"the {train.name} masks of {folder} hold {len(learned)} classes besides segment.ignore={ignore}, and two are "
            f"needed; if {ignore} is a class of yours, set segment.ignore to a value that no mask holds"
        )
    if not len(test.values(ignore)):
        raise UserError(f"the {test.name} masks of {folder} hold nothing but segment.ignore={ignore}: nothing to score")
    names = classes or tuple(map(str, range(int(learned.max()) + 1)))
    for images in (train, test):
        unknown = set(images.values(ignore).tolist()) - set(range(len(names)))
        if unknown:
            value = min(unknown)
            mask = images.pairs.masks[int(images.holds[:, value].argmax())]
            whose = "segment.classes names" if classes else "the train masks hold"
            raise UserError(
                f"{mask} holds class {value}, but {whose} none above {len(names) - 1}; if {value} marks pixels without a "
                f"class, set segment.ignore={value}"
            )
    return train, test, names


def read_mask(path: Path) -> np.ndarray:
    """Class indices, uint8 (H, W). Raises UserError where the file cannot be read or is not of mode L or P."""
    try:
        image = open_image(path.read_bytes())
        values = np.array(image)
    except Exception as error:  # a broken file leads Pillow to raise whatever it meets
        raise UserError(f"{path} cannot be read ({one_line(error)})") from None
    if image.mode not in ("L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; a mask is a PNG of mode L or P with a class index per pixel")
    return values


def _picture(path: Path) -> Picture:
    """Raises BadImage."""
    try:
        return EncodedPicture(path.read_bytes())
    except OSError as error:
        raise BadImage(f"the file cannot be read: {error.strerror or error}") from None


def _survey(pairs: Pairs) -> MaskedImages:
    """Sizes and values of all pairs. Raises UserError for a pair that cannot be read or whose sizes differ."""
    count = len(pairs)
    sizes, holds = np.zeros((count, 2), dtype=np.int64), np.zeros((count, VALUES), dtype=bool)

    def look(row: int) -> None:
        try:
            sizes[row] = _picture(pairs.images[row]).size
        except BadImage as error:
            raise UserError(f"{pairs.images[row]}: {error}") from None
        mask = read_mask(pairs.masks[row])
        if mask.shape != tuple(sizes[row]):
            raise UserError(
                f"{pairs.masks[row]} is of {_by(mask.shape)} pixels and its image of {_by(sizes[row])}: they should be "
                "of one size (height x width)"
            )
        holds[row, np.unique(mask)] = True

    with Progress(f"{pairs.name} masks", count) as progress, ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for start in range(0, count, AT_ONCE):
            list(threads.map(look, range(start, min(start + AT_ONCE, count))))
            progress.advance(AT_ONCE)
    return MaskedImages(pairs, sizes, holds)


def _by(size: Sequence[int] | np.ndarray) -> str:
    return "x".join(str(int(side)) for side in size)
