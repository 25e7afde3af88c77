"""Iterative decoding: unknown codes are drawn all at once, the surest are kept, the others are drawn again.

Source: MaskGIT (arXiv 2202.04200, section 3.2), as in MAGE's code (2211.09117).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predict = Callable[[Int[Tensor, "B L"], Bool[Tensor, "B L"]], Float[Tensor, "B L K"]]


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    steps: forward passes from all unknown codes to none.
    temperature: how much chance there is in which codes are kept, at the first step; it falls linearly to none.
    """

    steps: int = 20
    temperature: float = 6.0

    def unknown_after(self, step: int, start: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """How many of `start` codes are still to be unknown after a step, counted from 0: a quarter of a cosine."""
        return (start * math.cos(math.pi / 2 * (step + 1) / self.steps)).floor().long()


def fill_in(
    predict: Predict,
    codes: Int[Tensor, "B L"],
    unknown: Bool[Tensor, "B L"],
    sampling: Sampling,
    generator: torch.Generator,
) -> Int[Tensor, "B L"]:
    """The codes, with those that are unknown drawn from `predict(codes, unknown)`, logits that never see them.

    The others stay as they are. generator: on the codes' device.
    """
    start = unknown.sum(1)
    for step in range(sampling.steps):
        log_p = predict(codes, unknown).float().log_softmax(-1)
        drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view_as(codes)
        codes = torch.where(unknown, drawn, codes)
        chance = sampling.temperature * (1 - (step + 1) / sampling.steps)
        gumbel = -torch.empty_like(log_p[..., 0]).exponential_(generator=generator).log()
        sure = log_p.gather(-1, codes[..., None])[..., 0] + chance * gumbel
        sure = torch.where(unknown, sure, torch.inf)
        again = torch.minimum(sampling.unknown_after(step, start), unknown.sum(1) - 1).clamp(min=1)
        unknown = unknown & (sure.argsort(1).argsort(1) < again[:, None])
    return codes
