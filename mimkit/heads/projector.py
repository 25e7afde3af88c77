"""A perceptron on the mean token, for contrast between images. Source: SimCLR (arXiv 2002.05709), in MAGE-C (2211.09117)."""

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.types import Features, Head, Mask, Prediction


class Projector(Head):
    """One vector per image: linear, ReLU, linear on the mean of the patch tokens that the encoder gives.

    Goes with: target=twin beside another objective, any encoder and mask.

    hidden_dim: width between the two layers.
    norm: before the ReLU, batch norm or none.
    """

    reads_coarse = True

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        hidden_dim: Annotated[int, Gt(0)] = 2048,
        norm: Literal["batch", "none"] = "none",
    ):
        super().__init__()
        self.fc1 = nn.Linear(encoder_dim, hidden_dim)
        self.norm = nn.BatchNorm1d(hidden_dim) if norm == "batch" else nn.Identity()
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, features: Features, mask: Mask) -> Prediction:
        return Prediction(None, cls=self._project(features.pooled))

    def _project(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        return self.fc2(F.relu(self.norm(self.fc1(pooled))))
