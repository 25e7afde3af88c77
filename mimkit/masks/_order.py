"""A mask from an order of the places: those that come first stay visible."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mimkit.types import Feed, Mask, Size

Predict = Literal["hidden", "all"]


def mask_from_order(
    order: Int[Tensor, "B L"], visible: int, grid: Size, feed: Feed, predict: Predict = "hidden", ignored: int = 0
) -> Mask:
    """The first `visible` places of each row stay visible, the rest is hidden; all indices in raster order.

    predict: where the loss counts. ignored: how many places, the next in the order, are hidden but not predicted.
    """
    batch, places = order.shape
    seen = order[:, :visible].sort(dim=1).values
    covered = order[:, visible + ignored :].sort(dim=1).values
    hidden = torch.ones(batch, places, dtype=torch.bool).scatter_(1, seen, False)
    predicted = hidden
    if predict == "all":
        predicted, covered = torch.ones_like(hidden), torch.arange(places).repeat(batch, 1)
    elif ignored:
        predicted = torch.zeros_like(hidden).scatter_(1, covered, True)
    return Mask(hidden, predicted, seen if feed == "visible" else None, grid, predicted_index=covered)
