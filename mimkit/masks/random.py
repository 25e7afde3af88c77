"""Uniformly random places, the same number in every image. Source: MAE (arXiv 2111.06377, section 3, Masking)."""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.geometry import PlainFeed
from mimkit.masks._count import Rounding, hidden_count
from mimkit.masks._order import Predict, mask_from_order
from mimkit.types import Mask, Masking, Size


class Random(Masking):
    """Random places.

    ratio: share of the places that is hidden.
    count: exact number of hidden places, instead of the ratio.
    rounding: how the ratio becomes a number; MAE truncates the visible ones, SimMIM rounds the hidden ones up.
    predict: whether the loss counts at the hidden places or at all of them.
    predict_ratio: share of all places that is predicted, at most the ratio; the other hidden ones are left out
        (CrossMAE, arXiv 2401.14391). null predicts every hidden place.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.75,
        count: Annotated[int, Gt(0)] | None = None,
        rounding: Rounding = "floor_visible",
        predict: Predict = "hidden",
        predict_ratio: Annotated[float, Gt(0), Lt(1)] | None = None,
        feed: PlainFeed = "visible",
    ):
        if predict_ratio is not None and (count is not None or predict == "all"):
            raise UserError(
                "mask.predict_ratio is a part of mask.ratio: it goes without mask.count and mask.predict=all"
            )
        if predict_ratio is not None and predict_ratio > ratio:
            raise UserError(
                f"mask.predict_ratio={predict_ratio} must not exceed mask.ratio={ratio}: only hidden is left out"
            )
        self.ratio, self.count, self.rounding, self.feed = ratio, count, rounding, feed
        self.predict, self.predict_ratio = predict, predict_ratio

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        places = grid[0] * grid[1]
        count = hidden_count(places, self.ratio, self.count, self.rounding)
        ignored = 0
        if self.predict_ratio is not None:
            ignored = int(
                places * (self.ratio - self.predict_ratio)
            )  # truncated floats, as the authors: 64 · (.7 - .2) is 31
            if ignored >= count:
                raise UserError(f"mask.predict_ratio={self.predict_ratio} leaves none of {places} places to predict")
        order = torch.rand(batch, places, generator=generator).argsort(dim=1)
        return mask_from_order(order, places - count, grid, self.feed, self.predict, ignored)
