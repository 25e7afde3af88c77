"""Raw pixels of each patch. Source: SimMIM (arXiv 2111.09886, section 3.4); MAE without norm_pix_loss (2111.06377)."""

from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Images, Standardize, Target, patchify


class Pixels(Target):
    """Standardised pixels of each patch, (B, L, p·p·C).

    order: channel last is (row, column, channel) as in MAE, channel first is (channel, row, column) as in SimMIM.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    normalizer, loss = "none", "mse"

    def __init__(
        self,
        *,
        patch_size: int,
        in_chans: int = 3,
        order: Literal["channel_last", "channel_first"] = "channel_last",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.patch_size, self.order = patch_size, order
        self.dim = patch_size * patch_size * in_chans
        self.standardize = Standardize(in_chans, mean, std)

    def forward(self, images: Images) -> Float[Tensor, "B L D"]:
        patches = patchify(self.standardize(images), self.patch_size)
        return rearrange(patches, "b l p c -> b l (p c)" if self.order == "channel_last" else "b l p c -> b l (c p)")

    def to_images(self, values: Float[Tensor, "B L D"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Values of all places back into images in [0, 1] units (not clamped)."""
        h, w = grid
        pattern = "(p q c)" if self.order == "channel_last" else "(c p q)"
        p = self.patch_size
        images = rearrange(values, f"b (h w) {pattern} -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
        return self.standardize.invert(images)
