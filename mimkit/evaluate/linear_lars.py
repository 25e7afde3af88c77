"""MAE's published linear probe: random crops, LARS. Source: MAE (arXiv 2111.06377, appendix A.1) and its code."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from torch import nn

from mimkit.data.crops import RandomCrop
from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.training import Crops, accuracy, train_on_crops


@dataclass(frozen=True, kw_only=True)
class LinearLars:
    """Batch norm without affine and a linear layer on the pooled features of random crops, trained by LARS.

    The rate rises in the first ninth of the epochs (10 of 90) and falls along a half cosine to 0. The batch norm sees
    the whole batch; with MAE it is each GPU's share of 512. The rate is made for ImageNet: a step of LARS moves the weights
    by a share of their norm, and few images make few steps, so they need more epochs or a larger base_lr.

    epochs: passes over the training images.
    base_lr: rate per 256 images of a step.
    batch_size: images per step; all where there are fewer.
    """

    epochs: Annotated[int, Gt(0)] = 90
    base_lr: Annotated[float, Gt(0)] = 0.1
    batch_size: Annotated[int, Gt(1)] = 16384

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images, as full images, after the last epoch."""
        crops = Crops(frozen, frozen.pool, self.batch_size, ClippedCrop((0.08, 1.0)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = linear_head(frozen.encoder.embed_dim, frozen.classes).to(frozen.device)
        train_on_crops(head, lars(head), crops, self.epochs, self.base_lr)
        note = f"{self.epochs} epochs of random crops, {crops.batch_size} a step"
        return Score(accuracy(head, [frozen.labelled("test", frozen.pool)]), note)


class ClippedCrop(RandomCrop):
    """As MAE's linear probe draws its crops: area and ratio once, sides that are too long cut to the image's."""

    def boxes(self, sizes: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As RandomCrop's."""
        height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
        low, high = np.log(self.ratio)
        area = height * width * (self.scale[0] + draws[:, 0] * (self.scale[1] - self.scale[0]))
        ratio = np.exp(low + draws[:, 1] * (high - low))
        h = np.minimum(np.rint(np.sqrt(area / ratio)).astype(np.int64), height)
        w = np.minimum(np.rint(np.sqrt(area * ratio)).astype(np.int64), width)
        top = (draws[:, 20] * (height - h + 1)).astype(np.int64)
        left = (draws[:, 21] * (width - w + 1)).astype(np.int64)
        return np.stack([top, left, h, w], axis=1), draws[:, 22] < self.flip


def linear_head(width: int, classes: int) -> nn.Sequential:
    """Features (B, width) to logits (B, classes)."""
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), linear)


def lars(head: nn.Module) -> torch.optim.Optimizer:
    """LARS as MAE sets it: momentum 0.9, no decay, steps in proportion to the norms of weights but not of biases."""
    from timm.optim.lars import Lars

    weights, biases = ([p for p in head.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": weights, "always_adapt": True}, {"params": biases}]
    return Lars(groups, momentum=0.9, trust_coeff=0.001)
