"""MAGE's mask: another ratio in every batch, and a part of what is hidden is fed as mask tokens.

Source: MAGE (arXiv 2211.09117, section 3.1) and its code, in which all images of a batch have the same ratio.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Mask, Masking, Size


class Variable(Masking):
    """Random places, whose share is drawn anew for every batch from a normal distribution cut at `low` and `high`.

    Goes with: encoder=mage and head=code_decoder; with encoders that take mask tokens and head=decoder.

    mean: of the distribution before the cut.
    std: standard deviation of the distribution before the cut.
    low: smallest share of the places that is hidden.
    high: largest share of the places that is hidden.
    drop: share of the places, all of them hidden, that the encoder is not fed.
    """

    def __init__(
        self,
        *,
        mean: float = 0.55,
        std: Annotated[float, Gt(0)] = 0.25,
        low: Annotated[float, Gt(0), Lt(1)] = 0.5,
        high: Annotated[float, Gt(0), Le(1)] = 1.0,
        drop: Annotated[float, Ge(0), Lt(1)] = 0.5,
    ):
        if not drop <= low <= high:
            raise UserError(
                f"mask.drop={drop}, mask.low={low} and mask.high={high} must rise: only what is hidden is dropped"
            )
        self.mean, self.std, self.low, self.high, self.drop = mean, std, low, high, drop
        self.feed = "some" if drop else "all"

    def draw(
        self, grid: Size, batch: int, generator: torch.Generator, saliency: Float[Tensor, "B L"] | None = None
    ) -> Mask:
        places = grid[0] * grid[1]
        count, dropped = (math.ceil(places * share) for share in (self._ratio(generator), self.drop))
        order = torch.rand(batch, places, generator=generator).argsort(dim=1)
        covered = order[:, :count].sort(dim=1).values
        hidden = torch.zeros(batch, places, dtype=torch.bool).scatter_(1, covered, True)
        fed = order[:, dropped:].sort(dim=1).values if dropped else None
        return Mask(hidden, hidden, fed, grid, predicted_index=covered)

    def _ratio(self, generator: torch.Generator) -> float:
        """By the inverse of the distribution's cumulative function."""
        cuts = torch.tensor([self.low, self.high], dtype=torch.float64)
        low, high = torch.special.ndtr((cuts - self.mean) / self.std)
        share = torch.rand((), dtype=torch.float64, generator=generator)
        ratio = self.mean + self.std * torch.special.ndtri(torch.lerp(low, high, share))
        return ratio.clamp(self.low, self.high).item()
