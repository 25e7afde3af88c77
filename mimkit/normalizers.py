"""Normalizers: how target values are brought to the scale on which the loss counts. Each acts on one place alone."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Normalizer

Places = Float[Tensor, "*places D"]
PerPlace = Float[Tensor, "*places 1"]


class none(Normalizer):
    """The values as they are."""

    def __call__(self, values: Places) -> Places:
        return values

    def invert(self, values: Places, like: Places) -> Places:
        return values


class layer_norm(Normalizer):
    """Zero mean and unit variance over the width of each place, without affine part (MaskDistill, data2vec).

    eps: added to the variance.
    unbiased: divide the variance by D - 1 instead of D.
    """

    def __init__(self, *, eps: Annotated[float, Ge(0)] = 1e-5, unbiased: bool = False):
        self.eps, self.unbiased = eps, unbiased

    def __call__(self, values: Places) -> Places:
        mean, std = self._statistics(values)
        return (values - mean) / std

    def invert(self, values: Places, like: Places) -> Places:
        mean, std = self._statistics(like)
        return values * std + mean

    def _statistics(self, values: Places) -> tuple[PerPlace, PerPlace]:
        variance = values.var(-1, keepdim=True, unbiased=self.unbiased)
        return values.mean(-1, keepdim=True), (variance + self.eps).sqrt()


class per_patch(layer_norm):
    """MAE's `norm_pix_loss`: as layer_norm, with the unbiased variance and eps 1e-6 of the authors' forward_loss.

    eps: added to the variance.
    unbiased: divide the variance by D - 1 instead of D.
    """

    def __init__(self, *, eps: Annotated[float, Ge(0)] = 1e-6, unbiased: bool = True):
        super().__init__(eps=eps, unbiased=unbiased)


class l2(Normalizer):
    """Unit length per place (MILAN, VQ-KD, EVA).

    eps: smallest length divided by.
    """

    def __init__(self, *, eps: Annotated[float, Ge(0)] = 1e-12):
        self.eps = eps

    def __call__(self, values: Places) -> Places:
        return F.normalize(values, dim=-1, eps=self.eps)

    def invert(self, values: Places, like: Places) -> Places:
        return values * like.norm(dim=-1, keepdim=True).clamp_min(self.eps)
