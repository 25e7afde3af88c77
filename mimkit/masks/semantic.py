"""What a teacher looks at stays visible. Source: MILAN (arXiv 2208.06049, section 3.3, Semantic Aware Sampling)."""

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

FLOOR = 1e-30  # of a saliency: an underflow to zero must not stop the sampling; in float64 it still ranks last


class Semantic(Masking):
    """Visible places are sampled one after another, without replacement, with probabilities in proportion to saliency.

    Goes with: targets that tell a saliency (clip and timm with target.saliency=true).

    ratio: share of the places that is hidden.
    count: exact number of hidden places, instead of the ratio.
    rounding: how the ratio becomes a number; MILAN truncates the visible ones.
    predict: whether the loss counts at the hidden places or, as in MILAN, at all of them.
    feed: whether the encoder is fed the visible places only, or all with mask tokens.
    """

    def __init__(
        self,
        *,
        ratio: Annotated[float, Gt(0), Lt(1)] = 0.75,
        count: Annotated[int, Gt(0)] | None = None,
        rounding: Rounding = "floor_visible",
        predict: Predict = "hidden",
        feed: PlainFeed = "visible",
    ):
        self.ratio, self.count, self.rounding, self.predict, self.feed = ratio, count, rounding, predict, feed

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        """Raises UserError where no target gives a saliency."""
        if saliency is None:
            raise UserError(
                "mask 'semantic' follows a target's saliency: set target.saliency=true (clip, timm), or mask=random"
            )
        places = grid[0] * grid[1]
        count = hidden_count(places, self.ratio, self.count, self.rounding)
        weights = saliency.to("cpu", torch.float64).clamp_min(FLOOR)
        order = torch.multinomial(weights, places, generator=generator)
        return mask_from_order(order, places - count, grid, self.feed, self.predict)
