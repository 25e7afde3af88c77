"""Pixels without their high frequencies. Source: PixMIM (Liu et al., 2023, arXiv 2303.02416, section 3.2)."""

from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Images, Size, Standardize, Target, patchify


class LowFrequency(Target):
    """Pixels of each patch, (B, L, p·p·C), of the image behind an ideal low-pass filter.

    The filter is the paper's, centred on frequency zero; the authors' code has it half a step beside.

    cutoff: highest frequency that stays, in periods per pixel; PixMIM: 40 periods over 224 px.
    """

    normalizer, loss = "per_patch", "mse"

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: int,
        in_chans: int = 3,
        cutoff: Annotated[float, Gt(0)] = 40 / 224,
    ):
        super().__init__()
        self.patch_size, self.dim = patch_size, patch_size**2 * in_chans
        self.standardize = Standardize(in_chans)
        rows, columns = (torch.fft.fftfreq(side) for side in image_size)
        self.low: Tensor
        self.register_buffer("low", torch.hypot(rows[:, None], columns) <= cutoff, persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "B L D"]:
        spectrum = torch.fft.fft2(self.standardize(images)) * self.low
        return patchify(torch.fft.ifft2(spectrum).real, self.patch_size).flatten(2)
