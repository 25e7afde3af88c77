"""Are a file's positions the model's? A wrong grid or swapped axes would load in silence and spoil every feature."""

from collections.abc import Mapping
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.transformer import sincos_positions
from mimkit.types import Encoder, Size

TOLERANCE = 1e-3  # half-precision files round by 5e-4; swapped axes differ by about 2


def check_grid(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError where a file's positions are of another number of places than the encoder's grid.

    tensors: by our names, of an encoder that drives a timm ViT.
    """
    positions = tensors.get("encoder.timm_model.pos_embed")
    patches = tensors.get("encoder.timm_model.patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return  # the names and shapes are told by other checks
    places = positions.shape[1] - ("encoder.timm_model.cls_token" in tensors)
    height, width = encoder.grid
    if places == height * width:
        return
    side, patch_size = isqrt(places), patches.shape[-1]
    fits = f"image_size={side * patch_size} with encoder.patch_size={patch_size} would fit"
    if side * side != places:
        fits = f"an image_size of {places} patches of {patch_size}x{patch_size} pixels would fit"
    raise UserError(f"{where}: its positions are of {places} places, the encoder's grid is {height}x{width}; {fits}")


def is_sincos(positions: Float[Tensor, "1 N D"], grid: Size) -> bool:
    """Whether the last places of a table are fixed sine-cosine positions, in either order of the axes."""
    return any(_distance(positions, grid, column_first) < TOLERANCE for column_first in (True, False))


def check_positions(
    name: str, ours: Float[Tensor, "1 N D"], theirs: Float[Tensor, "1 M D"], grid: Size, where: str
) -> None:
    """Raise UserError unless the file's fixed positions are the model's, and zero for its class token.

    name: ours; `encoder.…` or `head.…`.
    """
    column_first = _distance(ours, grid, True) < TOLERANCE
    if _distance(theirs, grid, column_first) < TOLERANCE and not theirs[:, : -grid[0] * grid[1]].any():
        return
    role = name.partition(".")[0]
    if _distance(theirs, grid, not column_first) < TOLERANCE:
        first, other = ("column", "row") if column_first else ("row", "column")
        raise UserError(
            f"{where}: its {role} positions encode the {other} first, the model's the {first}; "
            f"set {role}.pos_first={other}"
        )
    raise UserError(
        f"{where}: its {role} positions are not the sine-cosine ones of a {grid[0]}x{grid[1]} grid that the model has; "
        "another shape of grid, or weights of another kind"
    )


def _distance(positions: Tensor, grid: Size, column_first: bool) -> float:
    """Largest difference between the last places of a table and sine-cosine positions; inf where it is too short."""
    places, dim = grid[0] * grid[1], positions.shape[-1]
    if positions.ndim != 3 or positions.shape[1] < places or dim % 4:
        return torch.inf
    wanted = sincos_positions(grid, dim, column_first)
    return float((positions[:, -places:].detach().float().cpu() - wanted).abs().max())
