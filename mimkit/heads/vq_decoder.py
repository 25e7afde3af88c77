"""A codebook and a convolutional decoder that paints images from codes: the head that makes an image tokenizer.

Source: VQGAN (arXiv 2012.09841, section 3.1). The codes learn by gradient descent, as their authors' do.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.codebook import in_use, nearest_l2, perplexity, revive, straight_through, totals
from mimkit.convnet import ConvDecoder, Multiples, Style, Width, scale_of
from mimkit.errors import UserError
from mimkit.types import Features, Feed, Head, Mask, Prediction, Size, patchify

DECAY = 0.99  # of the counts of the codes' use


class VQDecoder(Head):
    """Each token becomes the nearest code of a codebook, and residual blocks at ever higher resolution paint the image.

    Goes with: mask=none or mask.feed=all, target=pixels, and an encoder with a token for each place (conv, vit, not swin).

    The prediction is the pixels of each patch in the order channel_last.

    vocab_size: number of codes.
    code_dim: width of a code; in the style maskgit it is the encoder's.
    commitment: weight of the mean squared distance that draws the vectors to their codes.
    codebook: weight of the mean squared distance that draws the codes to their vectors. The paper's weights are 0.25 and
        1; the authors' code has them exchanged, and so do their published models and the defaults.
    ch: width of the finest level, a multiple of 32.
    ch_mult: width of each level, from the finest, as a multiple of `ch`; 2^(levels - 1) must be the encoder's patch size.
    num_res_blocks: residual blocks of a level; in the style taming there is one more.
    style: VQGAN's layers (taming), or those of MaskGIT's and MAGE's tokenizer (maskgit).
    revive: whether codes that fell out of use become random vectors of the batch (SoundStream, arXiv 2107.03312,
        section 3.3); out of use is a moving count of vectors below a hundredth of the average code's.
    mean: that of target=pixels, by which `decode` brings images back; null is 0.5 (taming) or 0 (maskgit).
    std: that of target=pixels; null is 0.5 (taming) or 1 (maskgit).
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        out_dim: int,
        grid: Size,
        patch_size: int,
        in_chans: int,
        feed: Feed = "all",
        vocab_size: Annotated[int, Gt(1)] = 1024,
        code_dim: Annotated[int, Gt(0)] = 256,
        commitment: Annotated[float, Ge(0)] = 1.0,
        codebook: Annotated[float, Ge(0)] = 0.25,
        ch: Width = 128,
        ch_mult: Multiples = (1, 1, 2, 2, 4),
        num_res_blocks: Annotated[int, Gt(0)] = 2,
        style: Style = "taming",
        revive: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        _check(feed, patch_size, len(ch_mult), out_dim, in_chans)
        if style == "maskgit" and code_dim != encoder_dim:
            raise UserError(f"head.style=maskgit quantizes the tokens as they are: set head.code_dim={encoder_dim}")
        self.grid, self.patch_size, self.vocab_size = grid, patch_size, vocab_size
        self.weights, self.revive = (commitment, codebook), revive
        plain = style == "taming"
        self.quant_conv = nn.Conv2d(encoder_dim, code_dim, 1) if plain else nn.Identity()
        self.codebook = nn.Embedding(vocab_size, code_dim)
        nn.init.uniform_(self.codebook.weight, -1 / vocab_size, 1 / vocab_size)
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(vocab_size))  # moving average of the vectors per batch
        self.post_quant_conv = nn.Conv2d(code_dim, encoder_dim, 1) if plain else nn.Identity()
        self.decoder = ConvDecoder(in_chans, ch, ch_mult, num_res_blocks, encoder_dim, style)
        self.scale = scale_of(style, in_chans, mean, std)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        return self.decoder.conv_out.weight

    def forward(self, features: Features, mask: Mask) -> Prediction:
        vectors = self._vectors(features)
        index = self._nearest(vectors)
        quantized = self.codebook(index)
        to_code, to_vector = self.weights
        distance = to_code * F.mse_loss(vectors, quantized.detach()) + to_vector * F.mse_loss(
            quantized, vectors.detach()
        )
        images = self._paint(straight_through(vectors, quantized))
        return Prediction(
            mask.select(patchify(images, self.patch_size).flatten(2)),
            losses={"codebook": distance},
            metrics=self._count(index.flatten(), vectors.detach().flatten(0, 1)),
        )

    def codes(self, features: Features) -> Int[Tensor, "B L"]:
        """The code of each place, 0 to vocab_size - 1."""
        return self._nearest(self._vectors(features))

    def decode(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """The images of codes of all places, in [0, 1]."""
        return self.scale.invert(self._paint(self.codebook(codes)).float()).clamp(0, 1)

    def _vectors(self, features: Features) -> Float[Tensor, "B L d"]:
        """What is quantized, in float32."""
        maps = rearrange(features.tokens, "b (h w) d -> b d h w", h=self.grid[0])
        return rearrange(self.quant_conv(maps), "b d h w -> b (h w) d").to(self.counts.dtype)

    def _nearest(self, vectors: Float[Tensor, "B L d"]) -> Int[Tensor, "B L"]:
        return nearest_l2(vectors.detach().flatten(0, 1), self.codebook.weight.detach()).view(vectors.shape[:2])

    def _paint(self, codes: Float[Tensor, "B L d"]) -> Float[Tensor, "B C H W"]:
        """Images on the target's scale from one code vector for each place."""
        return self.decoder(self.post_quant_conv(rearrange(codes, "b (h w) d -> b d h w", h=self.grid[0])))

    @torch.no_grad()
    def _count(self, index: Int[Tensor, "rows"], vectors: Float[Tensor, "rows d"]) -> dict[str, Tensor]:
        """What the log tells of the codes' use; in training dead codes are revived."""
        _, counts = totals(vectors, index, self.vocab_size, all_ranks=self.training)
        if self.training:
            self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        used = in_use(self.counts).to(counts.dtype).mean()
        if self.training and self.revive:
            revive(self.codebook.weight, self.counts, vectors)
        return {"perplexity": perplexity(counts), "codes_used": used}


def _check(feed: Feed, patch_size: int, levels: int, out_dim: int, in_chans: int) -> None:
    """Raise UserError where the encoder, the mask or the target does not suit the head."""
    if feed != "all":
        raise UserError("head 'vq_decoder' reads the tokens of all places: set mask=none, or mask.feed=all")
    if 2 ** (levels - 1) != patch_size:
        raise UserError(
            f"head.ch_mult has {levels} levels, which make patches of {2 ** (levels - 1)} pixels, the encoder's have "
            f"{patch_size}: {patch_size.bit_length()} levels would fit"
            if patch_size.bit_count() == 1
            else f"head 'vq_decoder' paints patches of 2, 4, 8, … pixels, the encoder's have {patch_size}"
        )
    if out_dim != patch_size**2 * in_chans:
        raise UserError(f"head 'vq_decoder' paints pixels, the target is {out_dim} wide: take target=pixels")
