"""CAE's published attentive probe: random crops, SGD. Source: CAE (arXiv 2202.03026) and its code."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt

from mimkit.data.crops import RandomCrop
from mimkit.evaluate.attentive import attentive_head
from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.training import Crops, accuracy, train_on_crops


@dataclass(frozen=True, kw_only=True)
class AttentiveSgd:
    """The layers of `attentive` on the tokens of random crops, trained by SGD with Nesterov's momentum 0.9.

    The rate rises in the first ninth of the epochs (10 of 90) and falls along a half cosine to 0.

    epochs: passes over the training images.
    base_lr: rate per 256 images of a step; the default is CAE's 0.4 at 8192.
    batch_size: images per step; all where there are fewer. Their tokens must fit into memory.
    num_heads: of the attention; null is one for 64 of the tokens' width, at least one.
    """

    epochs: Annotated[int, Gt(0)] = 90
    base_lr: Annotated[float, Gt(0)] = 0.0125
    batch_size: Annotated[int, Gt(1)] = 8192
    num_heads: Annotated[int, Gt(0)] | None = None

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images, as full images, after the last epoch."""
        crops = Crops(frozen, "tokens", self.batch_size, RandomCrop((0.08, 1.0)))
        head = attentive_head(frozen, self.num_heads)
        optimizer = torch.optim.SGD(head.parameters(), momentum=0.9, nesterov=True)
        train_on_crops(head, optimizer, crops, self.epochs, self.base_lr)
        note = f"{head.num_heads} heads, {self.epochs} epochs of random crops, {crops.batch_size} a step"
        return Score(accuracy(head, frozen.token_batches("test", self.batch_size)), note)
