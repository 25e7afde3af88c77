"""A vector-quantized bottleneck and a transformer that decodes it: the head that makes the encoder a tokenizer.

Source: VQ-KD (BEiT v2, arXiv 2208.06366, section 3.1). The codes follow the encoder by moving averages instead of the
paper's codebook term, as in the authors' code.
"""

from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.codebook import in_use, kmeans, moved, nearest, perplexity, revive, straight_through, totals
from mimkit.errors import UserError
from mimkit.quick import quicken
from mimkit.types import Features, Feed, Head, Mask, Prediction, Size


class Quantizer(Head):
    """Each token becomes the nearest code of a codebook, and blocks over all places predict the target from the codes.

    Goes with: mask=none or mask.feed=all, and an encoder with a token for each place (not swin).

    The codebook is no parameter: each training forward looks the codes up and then moves them (with
    `train.accumulate`, once for each part). A codebook of zeros waits for its k-means start.

    vocab_size: number of codes.
    code_dim: width of a code; smaller ones keep more codes in use.
    decay: share of a code (and of the counts of its use) that a training step keeps.
    kmeans_init: whether the codes start as cluster means of the first training batch, else as random directions.
    commitment: weight of the mean squared distance between the vectors and their codes.
    embed_dim: token width of the decoder.
    depth: number of blocks of the decoder.
    num_heads: attention heads of the decoder.
    mlp_ratio: width of the MLP over the token width.
    revive: whether codes that fell out of use become random vectors of the batch (SoundStream, arXiv 2107.03312,
        section 3.3); out of use is a moving count of vectors below a hundredth of the average code's.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        feed: Feed = "all",
        vocab_size: Annotated[int, Gt(1)] = 8192,
        code_dim: Annotated[int, Gt(0)] = 32,
        decay: Annotated[float, Ge(0), Lt(1)] = 0.99,
        kmeans_init: bool = True,
        commitment: Annotated[float, Ge(0)] = 1.0,
        embed_dim: Annotated[int, Gt(0)] = 768,
        depth: Annotated[int, Gt(0)] = 3,
        num_heads: Annotated[int, Gt(0)] = 12,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
        revive: bool = False,
    ):
        super().__init__()
        if feed != "all":
            raise UserError("head 'quantizer' reads the tokens of all places: set mask=none, or mask.feed=all")
        if embed_dim % num_heads:
            raise UserError(f"head.embed_dim={embed_dim} must be divisible by num_heads={num_heads}")
        from timm.models.beit import Beit

        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
        self.grid, self.vocab_size, self.decay, self.commitment = grid, vocab_size, decay, commitment
        self.revive = revive
        self.encode = _layers(encoder_dim, code_dim)
        self.codebook: Tensor
        self.counts: Tensor
        blank = torch.zeros(vocab_size, code_dim)
        self.register_buffer("codebook", blank if kmeans_init else F.normalize(torch.randn_like(blank), dim=1))
        self.register_buffer("counts", torch.zeros(vocab_size))  # moving average of the vectors per batch
        self.decoder = Beit(  # its own initial weights are the authors'
            img_size=grid,
            patch_size=1,
            in_chans=code_dim,
            num_classes=0,
            global_pool="",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            norm_layer=norm_layer,
        )
        self.decode = _layers(embed_dim, out_dim)
        quicken(self)
        self._started = False  # whether the codebook is known not to be blank, without asking the device again
        self.register_load_state_dict_post_hook(_ask_again)

    def forward(self, features: Features, mask: Mask) -> Prediction:
        vectors = self._vectors(features)
        quantized, metrics = self._quantize(vectors.detach().flatten(0, 1))
        quantized = quantized.view_as(vectors)
        codes = rearrange(straight_through(vectors, quantized), "b (h w) d -> b d h w", h=self.grid[0])
        decoded = self.decoder(codes)[:, self.decoder.num_prefix_tokens :]
        return Prediction(
            self.decode(mask.select(decoded)),
            losses={"commitment": self.commitment * F.mse_loss(vectors, quantized)},
            metrics=metrics,
        )

    def codes(self, features: Features) -> Int[Tensor, "B L"]:
        """The code of each place, 0 to vocab_size - 1."""
        vectors = self._vectors(features)
        return nearest(vectors.flatten(0, 1), self.codebook).view(vectors.shape[:2])

    def _vectors(self, features: Features) -> Float[Tensor, "B L d"]:
        """What is quantized: (B, L, code_dim) of unit length, never in half precision."""
        tokens = features.tokens
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.encode(tokens.to(self.codebook.dtype)), dim=-1)

    @torch.no_grad()
    def _quantize(self, vectors: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, "rows d"], dict[str, Tensor]]:
        """The nearest codes of (rows, d) and what the log tells; in training the codebook moves after the look-up."""
        if self.training:
            self._start(vectors)
        index = nearest(vectors, self.codebook)
        quantized = self.codebook[index]
        sums, counts = totals(vectors, index, self.vocab_size, all_ranks=self.training)
        if self.training:
            self.codebook.copy_(moved(self.codebook, sums, counts, self.decay))
            self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        used = in_use(self.counts).to(counts.dtype).mean()
        if self.training and self.revive:
            revive(self.codebook, self.counts, vectors)
        return quantized, {"perplexity": perplexity(counts), "codes_used": used}

    def _start(self, vectors: Float[Tensor, "rows d"]) -> None:
        """Fill a blank codebook with the cluster means of the first training batch."""
        if not self._started and not self.codebook.any():
            self.codebook.copy_(kmeans(vectors, self.vocab_size))
        self._started = True


def _layers(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, tanh, linear, with the authors' initial weights."""
    first, last = nn.Linear(in_dim, in_dim), nn.Linear(in_dim, out_dim)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.Tanh(), last)


def _ask_again(head: Quantizer, _: object) -> None:
    head._started = False
