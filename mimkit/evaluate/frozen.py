"""A frozen encoder and labelled images: what every probe works on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mimkit.data.source import Source
from mimkit.errors import UserError
from mimkit.evaluate.cache import Parts, cached
from mimkit.evaluate.features import BATCH, Kind, encode, extract
from mimkit.progress import Progress
from mimkit.types import Encoder

Split = Literal["train", "test"]
Pool = Literal["mean", "cls"]
TOKENS_LIMIT = 4 * 1024**3  # bytes of a split's tokens up to which they are kept on the disk


@dataclass(frozen=True)
class Labelled:
    """Features of readable images, (N, …), left on the disk until they are used, and the images' labels; on the CPU."""

    features: Float[Tensor, "N *axes"]
    labels: Int[Tensor, " N"]


@dataclass(frozen=True)
class Score:
    """What a probe finds.

    value: in percent. note: what was chosen, in a few words. details: what else is worth keeping, for JSON.
    metric: what the value is: `top1`, the share of test images that are right, or `miou`.
    """

    value: float
    note: str
    details: Mapping[str, Any] = field(default_factory=dict)
    metric: Literal["top1", "miou"] = "top1"


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder, labelled images to fit to and to test on, and a folder that keeps the features.

    sources: the images by split, all labelled.
    folder: where the features are kept. of: what they depend on besides their kind and the split.
    weights: the file that the encoder is of; None where it is not mimkit's own (a teacher).
    unreadable: how many images were left out, by split; filled in as they are met.
    """

    encoder: Encoder
    sources: Mapping[Split, Source]
    pool: Pool
    folder: Path
    of: Mapping[Split, Any]
    weights: Path | None = None
    unreadable: dict[Split, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the encoder is, and where the probes work."""
        return next(self.encoder.parameters()).device

    @property
    def classes(self) -> int:
        """How many classes there are: the labels are smaller."""
        labels = self.sources["train"].labels
        assert labels is not None
        return int(labels.max()) + 1

    def labelled(self, split: Split, kind: Kind) -> Labelled:
        """Features of all readable images of a split.

        Raises UserError where no image can be read, where features are not finite, and where they cannot be kept.
        """
        features, read = self._kept(split, kind)
        return Labelled(features, labels_of(self.sources[split], read))

    def readable(self, split: Split) -> Source:
        """The images of a split that can be read: all are encoded once to find out. Raises UserError as `labelled`."""
        source, (_, read) = self.sources[split], self._kept(split, self.pool)
        return source if len(read) == len(source) else source.subset(read)

    def token_batches(self, split: Split, size: int, order: torch.Generator | None = None) -> Iterator[Labelled]:
        """Token sequences (n, N, D) of a split in batches of up to `size` images, in a random order if `order` draws one.

        They are kept like other features where they take at most TOKENS_LIMIT, and encoded anew each time where not.
        Raises UserError as `labelled` does.
        """
        source = self.sources[split]
        if self._bytes_of_tokens(source) <= TOKENS_LIMIT:
            found = self.labelled(split, "tokens")
            for rows in _batches(len(found.labels), size, order):
                yield Labelled(found.features[rows], found.labels[rows])
            return
        self.unreadable[split] = 0
        for rows in _batches(len(source), size, order):
            read, tokens = zip(*self._extract(split, "tokens", rows.numpy()), strict=True)
            readable = np.concatenate(read)
            self.unreadable[split] += len(rows) - len(readable)
            yield Labelled(torch.cat(tokens), labels_of(source, readable))

    def _kept(self, split: Split, kind: Kind) -> tuple[Tensor, np.ndarray]:
        """Features of a split from its file, and which images they are of."""
        count = len(self.sources[split])
        of = {"of": self.of[split], "split": split, "kind": kind}
        features, read = cached(self.folder, of, count, lambda: self._all(split, kind))
        self.unreadable[split] = count - len(read)
        return features, read

    def _bytes_of_tokens(self, source: Source) -> int:
        encoder = self.encoder
        blank = torch.zeros(1, encoder.in_chans, *encoder.image_size, dtype=torch.uint8, device=self.device)
        with torch.no_grad():
            return 4 * len(source) * encode(encoder, blank, "tokens").numel()

    def _all(self, split: Split, kind: Kind) -> Parts:
        """Features of all images of a split, with a word on how far it is."""
        count, any_read = len(self.sources[split]), False
        with Progress(f"features of {split} images", count) as progress:
            for read, features in self._extract(split, kind, np.arange(count)):
                yield read, features
                any_read |= len(read) > 0
                progress.advance(BATCH)
        if not any_read:
            raise UserError(f"none of the {count} {split} images of {self.sources[split].name} can be read")

    def _extract(self, split: Split, kind: Kind, indices: np.ndarray) -> Parts:
        for read, features in extract(self.encoder, self.sources[split], indices, kind):
            if not torch.isfinite(features).all():
                raise UserError("the encoder's features are not finite: its training diverged, or its file is damaged")
            yield read, features


def _batches(count: int, size: int, order: torch.Generator | None) -> tuple[Tensor, ...]:
    """Indices 0..count-1 in parts, in a random order if `order` draws one."""
    return (torch.arange(count) if order is None else torch.randperm(count, generator=order)).split(size)


def labels_of(source: Source, indices: np.ndarray) -> Int[Tensor, " N"]:
    """Labels of the images at `indices` of a labelled source."""
    assert source.labels is not None
    return torch.from_numpy(source.labels[indices])
