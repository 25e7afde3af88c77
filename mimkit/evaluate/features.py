"""Frozen features: full image, eval mode, no gradient: the same for fitting and for testing, bit for bit."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mimkit.data.open import Data
from mimkit.data.source import Source
from mimkit.data.views import views
from mimkit.types import Encoder, Features, Images

BATCH = 50  # images that the encoder takes at once, always: with another number the last bits may differ
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


def extract(
    encoder: Encoder, source: Source, indices: np.ndarray, kind: Kind, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batch by batch, which of `indices` could be read, and their features of that kind, float32 on the CPU.

    Raises Interrupted once `stop()` says so.
    """
    bad: dict[int, str] = {}
    for part in np.split(indices, range(BATCH, len(indices), BATCH)):
        if stop():
            raise Interrupted
        images = views(source, encoder.image_size, encoder.in_chans, part, bad)
        good = np.array([index not in bad for index in part])
        yield part[good], encode_alike(encoder, images, kind)[torch.from_numpy(good)].cpu()


@torch.no_grad()
def encode_alike(encoder: Encoder, images: Images, kind: Kind) -> Tensor:
    """As `encode`, float32 on the encoder's device, in eval mode: an image's bits do not depend on how many there are.

    The images are encoded in batches of BATCH, the last one filled up with black ones.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % BATCH))
        parts = [encode(encoder, part.to(device), kind).float() for part in filled.split(BATCH)]
    finally:
        encoder.train(training)
    return torch.cat(parts)[: len(images)]


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
