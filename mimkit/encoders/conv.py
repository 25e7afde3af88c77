"""VQGAN's convolutional encoder (arXiv 2012.09841), whose tokens a head quantizes; the encoder of image tokenizers."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt
from einops import rearrange, repeat

from mimkit.convnet import ConvEncoder, Multiples, Style, Width, scale_of
from mimkit.errors import UserError
from mimkit.geometry import grid_of
from mimkit.transformer import check_dense, check_images
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size


class Conv(Encoder):
    """Residual blocks at ever lower resolution; a place is what the last one sees of the image, 2^(levels - 1) pixels wide.

    Goes with: mask.feed=all (mask=none for a tokenizer), and every head that takes it; hidden places are painted grey.

    ch: width of the first level, a multiple of 32.
    ch_mult: width of each level, as a multiple of `ch`; each level but the last halves the resolution.
    num_res_blocks: residual blocks of a level.
    z_channels: width of the tokens.
    style: VQGAN's layers (taming), or those of MaskGIT's and MAGE's tokenizer: no attention, no biases, average pooling.
    in_chans: channels of the images.
    mean: per channel in [0, 1] units; null is 0.5 in the style taming, 0 in the style maskgit.
    std: per channel in [0, 1] units; null is 0.5 in the style taming, 1 in the style maskgit.
    """

    num_layers = 0

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "all",
        ch: Width = 128,
        ch_mult: Multiples = (1, 1, 2, 2, 4),
        num_res_blocks: Annotated[int, Gt(0)] = 2,
        z_channels: Annotated[int, Gt(0)] = 256,
        style: Style = "taming",
        in_chans: Annotated[int, Gt(0)] = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        if feed != "all":
            raise UserError("encoder 'conv' reads the pixels of all places: set mask.feed=all, or take encoder=vit")
        self.image_size, self.in_chans, self.embed_dim = image_size, in_chans, z_channels
        self.patch_size = 2 ** (len(ch_mult) - 1)
        self.grid = grid_of(image_size, self.patch_size)
        self.standardize = scale_of(style, in_chans, mean, std)
        self.timm_model = ConvEncoder(in_chans, ch, ch_mult, num_res_blocks, z_channels, style)

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, L, z_channels) in raster order.

        Raises UserError for images of another size or number of channels, for a mask that feeds a part of the places,
        and where intermediate layers are asked for.
        """
        check_images(self, images)
        check_dense("conv", mask, layers)
        pixels = self.standardize(images)
        if mask is not None:
            (h, _), p = self.grid, self.patch_size
            pixels = pixels.masked_fill(repeat(mask.hidden, "b (h w) -> b 1 (h p) (w q)", h=h, p=p, q=p), 0.0)
        return Features(rearrange(self.timm_model(pixels), "b d h w -> b (h w) d"), grid=self.grid)
