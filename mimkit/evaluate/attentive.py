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
from mimkit.evaluate.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """Cross-attention of one query to all tokens, batch norm without affine, a linear layer, trained for a while.

    The layers are CAE's. CAE trains them by SGD (momentum 0.9, rate 0.4, batch 8192) for 90 epochs of random crops;
    here it is AdamW without weight decay on the tokens of full images, its rate falling along a half cosine to 0.

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
        """Top-1 on the test images after the last epoch."""
        source = frozen.sources["train"]
        assert source.labels is not None
        width, classes = frozen.encoder.embed_dim, int(source.labels.max()) + 1
        heads = self.num_heads or max(1, width // 64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            probe = AttentiveHead(width, heads, classes).to(frozen.device)
        self.fit(probe, frozen)
        correct, count = 0, 0
        probe.eval()
        with torch.inference_mode():
            for batch in frozen.token_batches("test", self.batch_size):
                predicted = probe(batch.features.to(frozen.device)).argmax(1).cpu()
                correct, count = correct + int((predicted == batch.labels).sum()), count + len(predicted)
        return Score(100 * correct / max(count, 1), f"{heads} heads, {self.epochs} epochs")

    def fit(self, probe: "AttentiveHead", frozen: Frozen) -> None:
        """Train the probe; the order of the images is always the same."""
        order = torch.Generator().manual_seed(0)
        steps = self.epochs * math.ceil(len(frozen.sources["train"]) / self.batch_size)
        optimizer = torch.optim.AdamW(probe.parameters(), self.lr, weight_decay=0)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with Progress("attentive probe, steps", steps) as progress:
            for _ in range(self.epochs):
                for batch in frozen.token_batches("train", self.batch_size, order):
                    if len(batch.labels) > 1:  # one image has no variance for the batch norm
                        logits = probe(batch.features.to(frozen.device))
                        optimizer.zero_grad()
                        F.cross_entropy(logits, batch.labels.to(frozen.device)).backward()
                        optimizer.step()
                    rate.step()
                    progress.advance(1)


class AttentiveHead(nn.Module):
    """Tokens to logits: CAE's attentive block and classifier.

    What changes no function is left out: the affine parts of the norms before the projections, the keys' bias (the same
    for all tokens) and the biases of values and projection (the batch norm takes them away). As there is one query, the
    keys' weights meet the query and the values' weights what it found, and neither meets every token.
    """

    def __init__(self, width: int, num_heads: int, classes: int):
        super().__init__()
        head_width = max(1, width // num_heads)
        self.query = nn.Parameter(torch.zeros(num_heads, head_width))
        self.key = nn.Parameter(torch.empty(num_heads, head_width, width))
        self.value = nn.Parameter(torch.empty(num_heads, head_width, width))
        self.proj = nn.Linear(num_heads * head_width, width, bias=False)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classify = nn.Linear(width, classes)
        for weight in (self.key, self.value, self.proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        looked_for = torch.einsum("he,hed->dh", self.query, self.key) / math.sqrt(self.query.shape[1])
        attention = (x @ looked_for).softmax(1)
        found = torch.einsum("hed,bhd->bhe", self.value, attention.transpose(1, 2) @ x)
        return self.classify(self.norm(self.proj(found.flatten(1))))
