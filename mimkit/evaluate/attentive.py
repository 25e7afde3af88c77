"""Attentive probe: one learned query looks at the frozen tokens. Source: CAE (arXiv 2202.03026) and its code."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.training import accuracy, train
from mimkit.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """Cross-attention of one query to all tokens, batch norm without affine, a linear layer, trained for a while.

    The layers are CAE's. Here they are trained by AdamW without weight decay on the tokens of full images, the rate
    falling along a half cosine to 0; `attentive_sgd` trains them as CAE does.

    epochs: passes over the training images.
    lr: rate at the start.
    batch_size: images per step.
    num_heads: of the attention; null is one for 64 of the tokens' width, at least one.
    """

    epochs: Annotated[int, Gt(0)] = 20
    lr: Annotated[float, Gt(0)] = 3e-3
    batch_size: Annotated[int, Gt(1)] = 64
    num_heads: Annotated[int, Gt(0)] | None = None

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images after the last epoch; the order of the training images is always the same."""
        head = attentive_head(frozen, self.num_heads)
        order = torch.Generator().manual_seed(0)
        steps = self.epochs * math.ceil(len(frozen.sources["train"]) / self.batch_size)
        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0)
        epochs = (frozen.token_batches("train", self.batch_size, order) for _ in range(self.epochs))
        train(head, optimizer, (batch for epoch in epochs for batch in epoch), steps, Schedule(self.lr, 0, 0, steps))
        top1 = accuracy(head, frozen.token_batches("test", self.batch_size))
        return Score(top1, f"{head.num_heads} heads, {self.epochs} epochs")


def attentive_head(frozen: Frozen, num_heads: int | None) -> "AttentiveHead":
    """A head for the encoder's tokens and the images' classes, the same weights every time."""
    width = frozen.encoder.embed_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AttentiveHead(width, num_heads or max(1, width // 64), frozen.classes).to(frozen.device)


class AttentiveHead(nn.Module):
    """Tokens to logits: CAE's attentive block and classifier.

    What no gradient ever reaches is left out: what shifts all keys alike (the softmax takes it away), and what shifts
    all images alike before the batch norm (the shift of the values' norm, the biases of values and projection). As there
    is one query, the keys' weights meet the query and the values' weights what it found, and neither meets every token.
    """

    def __init__(self, width: int, num_heads: int, classes: int):
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * max(1, width // num_heads)
        self.query = nn.Parameter(torch.zeros(width))
        self.norm_q = nn.LayerNorm(width, eps=1e-6)
        self.scale_k, self.scale_v = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.q = nn.Linear(width, inner)
        self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.proj = nn.Linear(inner, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classify = nn.Linear(width, classes)
        for layer, std in ((self.q, 0.02), (self.k, 0.02), (self.v, 0.02), (self.proj, 0.02), (self.classify, 0.01)):
            nn.init.trunc_normal_(layer.weight, std=std)
        for bias in (self.q.bias, self.classify.bias):
            nn.init.zeros_(bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        q = self.q(self.norm_q(self.query)).unflatten(0, (self.num_heads, -1))
        key, value = (layer.weight.unflatten(0, (self.num_heads, -1)) for layer in (self.k, self.v))  # (H, E, D)
        looked_for = torch.einsum("he,hed->dh", q, key) * self.scale_k[:, None] / math.sqrt(q.shape[1])
        found = (x @ looked_for).softmax(1).transpose(1, 2) @ x * self.scale_v
        return self.classify(self.norm(self.proj(torch.einsum("hed,bhd->bhe", value, found).flatten(1))))
