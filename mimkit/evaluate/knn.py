"""Weighted k nearest neighbours on frozen features. Source: DINO (arXiv 2104.14294, appendix F.1): k=20, temperature 0.07."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def knn_predict(
    bank: Float[Tensor, "N D"], labels: Int[Tensor, " N"], queries: Float[Tensor, "M D"], k: int, temperature: float
) -> Int[Tensor, " M"]:
    """The class of each query, (M,): its `k` nearest of the bank by cosine vote with weight exp(cosine / temperature)."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    classes = int(labels.max()) + 1
    predicted = []
    for part in queries.split(1000):
        cosine, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def top1(predicted: Int[Tensor, " M"], labels: Int[Tensor, " M"]) -> float:
    """Share of correct predictions in percent."""
    return 100 * (predicted == labels).float().mean().item()
