"""Uniformly random places, the same number in every image. Source: MAE (arXiv 2111.06377, section 3, Masking)."""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor

from mimkit.masks._count import Rounding, hidden_count
from mimkit.types import Feed, Mask, Masking, Size


class Random(Masking):
    """Random places.

    ratio: share of the places that is hidden.
    count: exact number of hidden places, instead of the ratio.
    rounding: how the ratio becomes a number; MAE truncates the visible ones, SimMIM rounds the hidden ones up.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.75,
        count: Annotated[int, Gt(0)] | None = None,
        rounding: Rounding = "floor_visible",
        feed: Feed = "visible",
    ):
        self.ratio, self.count, self.rounding, self.feed = ratio, count, rounding, feed

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        places = grid[0] * grid[1]
        count = hidden_count(places, self.ratio, self.count, self.rounding)
        shuffled = torch.rand(batch, places, generator=generator).argsort(dim=1)
        visible = shuffled[:, : places - count].sort(dim=1).values
        covered = shuffled[:, places - count :].sort(dim=1).values
        hidden = torch.ones(batch, places, dtype=torch.bool).scatter_(1, visible, False)
        return Mask(hidden, hidden, visible if self.feed == "visible" else None, grid, predicted_index=covered)
