"""Weighted k nearest neighbours on frozen features. Source: DINO (arXiv 2104.14294, appendix F.1): k=20, temperature 0.07."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor

from mimkit.evaluate.frozen import Frozen, Score


@dataclass(frozen=True, kw_only=True)
class Knn:
    """Training images vote on test images.

    k: neighbours that vote.
    temperature: of the votes, exp(cosine / temperature).
    """

    k: Annotated[int, Gt(0)] = 20
    temperature: Annotated[float, Gt(0)] = 0.07

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images."""
        train, test = (frozen.labelled(split, frozen.pool) for split in ("train", "test"))
        bank, labels = train.features.to(frozen.device), train.labels.to(frozen.device)
        predicted = knn_predict(bank, labels, test.features.to(frozen.device), self.k, self.temperature).cpu()
        return Score(top1(predicted, test.labels), f"k={self.k}, temperature={self.temperature:g}")


def knn_predict(
    bank: Float[Tensor, "N D"], labels: Int[Tensor, " N"], queries: Float[Tensor, "M D"], k: int, temperature: float
) -> Int[Tensor, " M"]:
    """The class of each query, (M,): its `k` nearest of the bank by cosine vote with weight exp(cosine / temperature)."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    classes = int(labels.max()) + 1
    predicted = []
    for part in queries.split(1000):
        cosine, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = ((cosine - cosine[:, :1]) / temperature).exp()  # of the nearest 1, so that none is infinite
        votes = bank.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def top1(predicted: Int[Tensor, " M"], labels: Int[Tensor, " M"]) -> float:
    """Share of correct predictions in percent."""
    return 100 * (predicted == labels).double().mean().item()
