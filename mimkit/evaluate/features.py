"""Frozen features: full image, eval mode, no gradient: the same for fitting and for testing."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mimkit.data.open import Data
from mimkit.data.source import Source
from mimkit.data.views import views
from mimkit.types import Encoder

BATCH = 250


class Interrupted(Exception):
    """The extraction was asked to stop."""


@torch.no_grad()
def pooled_features(
    encoder: Encoder, source: Source, indices: np.ndarray, stop: Callable[[], bool] = lambda: False
) -> tuple[Float[Tensor, "N D"], np.ndarray]:
    """Mean patch token of each image's evaluation view, (N, D) on the CPU, and which of `indices` could be read.

    Raises Interrupted once `stop()` says so.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    bad: dict[int, str] = {}
    parts, read = [], []
    try:
        for part in np.split(indices, range(BATCH, len(indices), BATCH)):
            if stop():
                raise Interrupted
            images = views(source, encoder.image_size, encoder.in_chans, part, bad)
            good = np.array([index not in bad for index in part])
            read.append(part[good])
            parts.append(encoder(images[torch.from_numpy(good)].to(device)).pooled.float().cpu())
    finally:
        encoder.train(training)
    return torch.cat(parts), np.concatenate(read)


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices of 0..count-1, evenly spread, so that sorted classes are all met."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def sample_views(data: Data, encoder: Encoder, most: int) -> UInt8[Tensor, "n C H W"]:
    """Evaluation views of at most `most` readable images, of the test images where there are any."""
    source = data.test if data.test is not None else data.train
    bad: dict[int, str] = {}
    indices = spread(len(source), most)
    images = views(source, encoder.image_size, encoder.in_chans, indices, bad)
    return images[[row for row, index in enumerate(indices) if index not in bad]]
