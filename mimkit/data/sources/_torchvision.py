"""What torchvision's data sets of small images share."""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.source import MEMORY_LIMIT, SMALL_IMAGE, Picture, Pixels, Source, to_channels
from mimkit.errors import UserError


class TorchvisionSource(Source):
    """Images and labels of a torchvision data set that keeps them in one array. A subclass says how it is loaded."""

    def __init__(self, *, path: str = "data"):
        self._load(path, "train")

    def dataset(self, path: str, split: str) -> Any:
        """The split "train" or "test" at `path`: images uint8 in `.data`, names in `.classes`."""
        raise NotImplementedError

    def _load(self, path: str, split: str) -> None:
        self.path, self.split = path, split
        dataset = self.dataset(path, split)
        labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        super().__init__(f"{type(self).__name__} {split}", np.array(labels, dtype=np.int64), list(dataset.classes), 3)
        channels_last = dataset.data.shape[3] == 3
        self.images = torch.from_numpy(np.moveaxis(dataset.data, 3, 1).copy() if channels_last else dataset.data)

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Picture:
        """See Source."""
        return Pixels(self.images[index])

    def _decode_all(self, in_chans: int | None) -> UInt8[Tensor, "N C H W"] | None:
        small = self.images[0, 0].numel() <= SMALL_IMAGE and self.images.numel() <= MEMORY_LIMIT
        return to_channels(self.images, in_chans or 3) if small else None

    def test(self) -> "TorchvisionSource | None":
        """The data set's own test images."""
        if self.split == "test":
            return None
        test = copy(self)
        test._load(self.path, "test")
        return test


def load(dataset: Callable[..., Any], path: str, **options: Any) -> Any:
    """The data set at `path`, downloaded to it where it is not there yet. Raises UserError where that fails."""
    try:
        return dataset(path, download=False, **options)
    except (RuntimeError, OSError):
        pass  # not there, or not whole
    try:
        return dataset(path, download=True, **options)
    except Exception as error:  # what urllib, ssl, tarfile and the disk raise
        reason = " ".join(str(error).split())
        raise UserError(f"the files are not in data.path={path} and could not be downloaded: {reason}") from None
