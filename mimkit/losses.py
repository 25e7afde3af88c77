"""Losses: one number per place, in float32; the model takes the mean over all predicted places of the batch."""

from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor

from mimkit.types import Loss

Places = Float[Tensor, "*places D"]
PerPlace = Float[Tensor, "*places"]


class mse(Loss):
    """Squared error, mean over the width (MAE)."""

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return (prediction - wanted).square().mean(-1)


class l1(Loss):
    """Absolute error, mean over the width (SimMIM)."""

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return (prediction - wanted).abs().mean(-1)


class smooth_l1(Loss):
    """Huber-like error divided by beta, mean over the width (MaskDistill, data2vec).

    beta: below this difference the error is quadratic, above it linear.
    """

    def __init__(self, *, beta: Annotated[float, Gt(0)] = 1.0):
        self.beta = beta

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return F.smooth_l1_loss(prediction, wanted, reduction="none", beta=self.beta).mean(-1)


class cosine(Loss):
    """1 - cosine similarity, times `scale` (EVA; with scale 2 MILAN's 2 - 2 cos).

    scale: factor of the loss.
    """

    direction_only = True

    def __init__(self, *, scale: Annotated[float, Gt(0)] = 1.0):
        self.scale = scale

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        return self.scale * (1 - F.cosine_similarity(prediction, wanted, dim=-1))


class cross_entropy(Loss):
    """Cross-entropy of logits (…, K) and codes (…) in 0..K-1 (BEiT, MAGE).

    label_smoothing: share of the wanted probability that is spread over all codes.
    """

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, prediction: Places, wanted: Int[Tensor, "*places"]) -> PerPlace:
        flat = F.cross_entropy(
            prediction.flatten(0, -2), wanted.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return flat.view(wanted.shape)


class info_nce(Loss):
    """Cross-entropy of finding the wanted vector of an image among those of the batch, on all ranks, by their cosines.

    temperature: divides the cosines.
    scale: factor of the loss; CMAE takes twice the temperature.
    exclude_self: whether no prediction is its own negative, as in SimCLR, where the wanted vectors are the predictions
        themselves with the two halves of the batch exchanged (target=twin).
    """

    direction_only = True

    def __init__(
        self,
        *,
        temperature: Annotated[float, Gt(0)] = 0.2,
        scale: Annotated[float, Gt(0)] = 1.0,
        exclude_self: bool = False,
    ):
        self.temperature, self.scale, self.exclude_self = temperature, scale, exclude_self

    def __call__(self, prediction: Places, wanted: Places) -> PerPlace:
        vectors, theirs = (F.normalize(x.flatten(0, -2), dim=-1) for x in (prediction, wanted))
        theirs, first = _of_all_ranks(theirs)
        rows = torch.arange(len(vectors), device=vectors.device)
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = vectors @ theirs.t()
        if self.exclude_self:
            own = (rows + len(rows) // 2) % len(rows) + first
            cosines = cosines.scatter(1, own[:, None], -torch.inf)
        found = F.cross_entropy(cosines / self.temperature, rows + first, reduction="none")
        return self.scale * found.view(wanted.shape[:-1])


def _of_all_ranks(rows: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "N D"], int]:
    """The rows of all ranks, each of which has as many, with their gradients; and the number of the first of our own."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows)), dist.get_rank() * len(rows)
