"""A frozen encoder and labelled images: what every probe works on."""

from collections.abc import Mapping
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
from mimkit.evaluate.features import Kind, extract
from mimkit.evaluate.progress import Progress
from mimkit.types import Encoder

Split = Literal["train", "test"]
Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class Labelled:
    """Features of readable images, (N, …), left on the disk until they are used, and the images' labels; on the CPU."""

    features: Float[Tensor, "N *axes"]
    labels: Int[Tensor, " N"]


@dataclass(frozen=True)
class Score:
    """What a probe finds.

    top1: percent of the test images. note: what was chosen, in a few words. details: what else is worth keeping, for JSON.
    """

    top1: float
    note: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder, labelled images to fit to and to test on, and a folder that keeps the features.

    sources: the images by split, all labelled. of: what the features depend on besides their kind and the split.
    unreadable: how many images were left out, by split; filled in as they are met.
    """

    encoder: Encoder
    sources: Mapping[Split, Source]
    pool: Pool
    folder: Path
    of: Mapping[Split, Any]
    unreadable: dict[Split, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the encoder is, and where the probes work."""
        return next(self.encoder.parameters()).device

    def labelled(self, split: Split, kind: Kind) -> Labelled:
        """Features of all readable images of a split.

        Raises UserError where no image can be read, where features are not finite, and where they cannot be kept.
        """
        source = self.sources[split]
        of = {"of": self.of[split], "split": split, "kind": kind}
        features, read = cached(self.folder, of, len(source), lambda: self._extract(split, kind))
        self.unreadable[split] = len(source) - len(read)
        if not len(read):
            raise UserError(f"none of the {len(source)} {split} images of {source.name} can be read")
        assert source.labels is not None
        return Labelled(features, torch.from_numpy(source.labels[read]))

    def _extract(self, split: Split, kind: Kind) -> Parts:
        source = self.sources[split]
        with Progress(f"features of the {split} images", len(source)) as progress:
            for read, features in extract(self.encoder, source, np.arange(len(source)), kind):
                if not torch.isfinite(features).all():
                    raise UserError(
                        "the encoder's features are not finite: its training diverged, or its file is damaged"
                    )
                yield read, features
                progress.advance(len(read))
