"""Fréchet distance between two sets of features. Source: FID (arXiv 1706.08500), with any encoder's features."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of both sets' means and (unbiased) covariances, in float64.

    0 for equal sets. Two samples of one distribution differ too, the more the fewer they are.
    """
    first, second = first.double(), second.double()
    covariances = [torch.atleast_2d(torch.cov(features.T)) for features in (first, second)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()  # as of C1 C2
    traces = sum(covariance.trace() for covariance in covariances)
    return ((first.mean(0) - second.mean(0)).square().sum() + traces - 2 * shared).clamp_min(0).item()
