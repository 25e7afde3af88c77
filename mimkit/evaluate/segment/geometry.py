"""At which sizes segmentation works: the images', what the encoder reads at once, the step between windows."""

from dataclasses import dataclass
from math import ceil
from typing import Annotated

from annotated_types import Gt

from mimkit.errors import UserError
from mimkit.types import Encoder, Size

Side = Annotated[int, Gt(0)]
Area = Side | tuple[Side, Side]


@dataclass(frozen=True)
class Geometry:
    """All as (height, width). size: of whole images. crop: of what the encoder reads. stride: between windows."""

    size: Size
    crop: Size
    stride: Size


def geometry(encoder: Encoder, size: Area | None, crop: Area | None, stride: Area | None) -> Geometry:
    """The sizes that the options `segment.size`, `crop` and `stride` stand for; one number is a square.

    Raises UserError for a crop that patches do not fill or images do not hold, and for a stride that leaves gaps.
    """
    whole = _pair(size) if size else encoder.image_size
    read = _pair(crop) if crop else whole
    patch = encoder.patch_size
    if any(side % patch for side in read):
        fits = (max(1, round(read[0] / patch)) * patch, max(1, round(read[1] / patch)) * patch)
        raise UserError(
            f"segment.{'crop' if crop else 'size'}={_by(read)} is not a multiple of the patch size {patch}; the nearest "
            f"is {_by(fits)}{'' if crop else ', or set segment.crop'}"
        )
    if any(small > large for small, large in zip(read, whole)):
        raise UserError(f"segment.crop={_by(read)} is larger than the images, segment.size={_by(whole)}")
    step = _pair(stride) if stride else (ceil(read[0] * 2 / 3), ceil(read[1] * 2 / 3))
    if any(one > side for one, side in zip(step, read)):
        raise UserError(f"segment.stride={_by(step)} is longer than segment.crop={_by(read)}: windows would leave gaps")
    return Geometry(whole, read, step)


def _pair(area: Area) -> Size:
    return (area, area) if isinstance(area, int) else area


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
