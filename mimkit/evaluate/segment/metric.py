"""Intersection over union, from one confusion matrix of all pixels."""

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


class Confusion:
    """How many pixels of each class were called which; pixels of the value `ignore` are left out.

    counts: (K, K), truth by prediction.
    """

    def __init__(self, num_classes: int, ignore: int):
        self.ignore = ignore
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, predicted: Int[Tensor, "B H W"], truth: UInt8[Tensor, "B H W"]) -> None:
        """Count more pixels."""
        counted = truth != self.ignore
        pairs = truth[counted].long() * len(self.counts) + predicted[counted]
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)

    @property
    def iou(self) -> list[float | None]:
        """Of each class, in percent; None where the class is in neither truth nor prediction."""
        right = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - right
        return [100 * hit / either if either else None for hit, either in zip(right.tolist(), union.tolist())]

    @property
    def miou(self) -> float:
        """Mean over the classes that are in truth or prediction, in percent."""
        found = [value for value in self.iou if value is not None]
        return sum(found) / len(found)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels whose class is right, in percent."""
        return (100 * self.counts.diagonal().sum() / self.counts.sum()).item()
