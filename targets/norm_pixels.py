"""Pixels normalised per patch: MAE's norm_pix_loss. Source: MAE (arXiv 2111.06377, section 3, Reconstruction target)."""

from mimkit.targets.pixels import Pixels


class NormPixels(Pixels):
    """Pixels (B, L, p·p·C) whose default normalizer is each patch's own mean and variance.

    order: channel last is (row, column, channel) as in MAE, channel first is (channel, row, column) as in SimMIM.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    normalizer = "per_patch"
