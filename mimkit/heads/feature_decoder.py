"""CMAE's feature decoder, projector and predictor: one vector per image. Source: CMAE (arXiv 2207.13532, section 3.2)."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.heads.decoder import Decoder
from mimkit.types import Features, Feed, Head, Mask, Prediction, Size


class FeatureDecoder(Head):
    """MAE's decoder predicts features of all places; their mean passes a projector and a predictor.

    Goes with: target=momentum, and an encoder with a token for each place (not swin).

    embed_dim: token width of the decoder.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: width of the MLP over the token width.
    pos_first: which axis the first half of the sine-cosine positions encodes.
    hidden_dim: width between the two layers of the projector and of the predictor.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        feed: Feed = "visible",
        embed_dim: Annotated[int, Gt(0)] = 512,
        depth: Annotated[int, Gt(0)] = 2,
        num_heads: Annotated[int, Gt(0)] = 16,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        pos_first: Literal["column", "row"] = "row",
        hidden_dim: Annotated[int, Gt(0)] = 1536,
    ):
        super().__init__()
        self.decoder = Decoder(
            encoder_dim=encoder_dim,
            out_dim=encoder_dim,
            grid=grid,
            feed=feed,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            pos_first=pos_first,
        )
        self.projector = TwoLayers(encoder_dim, hidden_dim, out_dim)
        self.predictor = TwoLayers(out_dim, hidden_dim, out_dim)

    def forward(self, features: Features, mask: Mask) -> Prediction:
        """The mean counts hidden and visible places alike, as in the authors' code."""
        decoded = self.decoder(replace(features, layers=()), everywhere(mask))
        return Prediction(None, cls=self.predictor(self.projector(decoded.mean(1))))


class TwoLayers(nn.Module):
    """Linear, batch norm, ReLU, linear without bias. A batch of one image passes the norm by its moving averages."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.fc0 = nn.Linear(in_dim, hidden_dim)
        self.bn0 = nn.BatchNorm1d(hidden_dim, eps=1e-6)
        self.fc1 = nn.Linear(hidden_dim, out_dim, bias=False)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """One vector per image."""
        hidden, norm = self.fc0(x), self.bn0
        if len(x) > 1:
            return self.fc1(F.relu(norm(hidden)))
        averages = norm.running_mean, norm.running_var
        return self.fc1(F.relu(F.batch_norm(hidden, *averages, norm.weight, norm.bias, eps=norm.eps)))


def everywhere(mask: Mask) -> Mask:
    """The same mask, with every place predicted."""
    batch, places = mask.hidden.shape
    index = torch.arange(places, device=mask.hidden.device).expand(batch, -1)
    return replace(mask, predicted=torch.ones_like(mask.hidden), predicted_index=index)
