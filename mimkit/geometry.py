"""Sizes and grids, without torch, so that a recipe's mistakes are told at once."""

from typing import Literal

from mimkit.errors import UserError

Size = tuple[int, int]
Feed = Literal["visible", "all", "some"]  # places that an encoder is fed; some: a part of the hidden ones too
PlainFeed = Literal["visible", "all"]  # what most masks can be told


def grid_of(image_size: Size, patch_size: int) -> Size:
    """Rows and columns of patches. Raises UserError, with the sizes that fit, where `patch_size` does not divide."""
    height, width = image_size
    if height % patch_size or width % patch_size:
        fits = [str(size) for size in range(2, 33) if not (height % size or width % size)]
        raise UserError(
            f"image_size {height}x{width} is not divisible by encoder.patch_size={patch_size}; "
            f"patch sizes that fit: {', '.join(fits) or 'none up to 32'}"
        )
    return height // patch_size, width // patch_size
