"""Frozen features: full image, eval mode, no gradient: the same for fitting and for testing."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mimkit.data.open import Data
from mimkit.data.source import Source
from mimkit.data.views import views
from mimkit.types import Encoder, Features, Images

BATCH = 250
Kind = Literal["mean", "cls", "layers", "tokens"]


class Interrupted(Exception):
    """The extraction was asked to stop."""


def pooled_features(
    encoder: Encoder, source: Source, indices: np.ndarray, stop: Callable[[], bool] = lambda: False
) -> tuple[Float[Tensor, "N D"], np.ndarray]:
    """Mean patch token of each image's evaluation view, (N, D) on the CPU, and which of `indices` could be read.

    Raises Interrupted once `stop()` says so.
    """
    read, parts = zip(*extract(encoder, source, indices, "mean", stop), strict=True)
    return torch.cat(parts), np.concatenate(read)


@torch.no_grad()
def extract(
    encoder: Encoder,
    source: Source,
    indices: np.ndarray,
    kind: Kind,
    stop: Callable[[], bool] = lambda: False,
    batch: int = BATCH,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batch by batch, which of `indices` could be read, and their features of that kind, float32 on the CPU.

    Raises Interrupted once `stop()` says so.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    bad: dict[int, str] = {}
    try:
        for part in np.split(indices, range(batch, len(indices), batch)):
            if stop():
                raise Interrupted
            images = views(source, encoder.image_size, encoder.in_chans, part, bad)
            good = np.array([index not in bad for index in part])
            yield part[good], encode(encoder, images[torch.from_numpy(good)].to(device), kind).float().cpu()
    finally:
        encoder.train(training)


def encode(encoder: Encoder, images: Images, kind: Kind) -> Tensor:
    """Features of full images (B, C, H, W).

    mean: mean of the patch tokens, (B, D). cls: class token, (B, D). tokens: the whole sequence, (B, N, D).
    layers: of each block's output, before the final norm, the class token if there is one and the mean of the patch
    tokens side by side, (B, num_layers, D or 2D).
    """
    if kind == "layers":
        features = encoder(images, layers=range(encoder.num_layers))
        return torch.stack([_both(Features(layer, features.num_prefix_tokens)) for layer in features.layers], dim=1)
    features = encoder(images)
    return {"mean": features.pooled, "cls": features.cls, "tokens": features.sequence}[kind]


def _both(features: Features) -> Float[Tensor, "B W"]:
    return features.pooled if features.cls is None else torch.cat([features.cls, features.pooled], dim=1)


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
