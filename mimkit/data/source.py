"""What a data source is: images by index, with labels where there are some."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

MEMORY_LIMIT = 2 * 1024**3  # bytes of a data set, decoded or encoded, up to which it is held in memory
SMALL_IMAGE = 128 * 128  # pixels up to which decoded images are held in memory and cropped a whole batch at a time

Size = tuple[int, int]


class BadImage(Exception):
    """An image that cannot be read; the message is the reason, in a few words."""


class Picture:
    """One image whose header is read and whose pixels are not decoded yet.

    size: height and width in pixels.
    mode: what a pixel is, by Pillow's names ("L", "RGB", "I;16"), or "12 channels".
    """

    size: Size
    mode: str

    def pixels(self, in_chans: int | None = None, min_size: Size | None = None) -> UInt8[Tensor, "C h w"]:
        """The whole image.

        in_chans: channels to give (see `to_channels`); None: as many as the file has.
        min_size: height and width that suffice; where decoding at a smaller scale is cheaper, the image comes smaller
            than `size`, but never smaller than this.
        Raises BadImage.
        """
        raise NotImplementedError


class Pixels(Picture):
    """A picture whose pixels are at hand, uint8 (C, H, W)."""

    def __init__(self, image: UInt8[Tensor, "C H W"]):
        self.image = image
        self.size = (image.shape[1], image.shape[2])
        self.mode = {1: "L", 3: "RGB"}.get(image.shape[0], f"{image.shape[0]} channels")

    def pixels(self, in_chans: int | None = None, min_size: Size | None = None) -> UInt8[Tensor, "C h w"]:
        """The image at its full size; raises BadImage where it cannot have `in_chans` channels."""
        return self.image if in_chans is None else to_channels(self.image, in_chans)


def to_channels(images: UInt8[Tensor, "*B C H W"], in_chans: int) -> UInt8[Tensor, "*B D H W"]:
    """Images with `in_chans` channels: grey is replicated to three, RGB becomes grey by Pillow's luma.

    Raises BadImage for every other change.
    """
    channels = images.shape[-3]
    if channels == in_chans:
        return images
    if channels == 1 and in_chans == 3:
        return images.expand(*images.shape[:-3], 3, -1, -1)
    if channels == 3 and in_chans == 1:
        red, green, blue = images.to(torch.int32).unbind(-3)
        return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(-3)
    raise BadImage(
        f"it has {channels} channels and the encoder reads {in_chans}; encoder.in_chans={channels} would fit"
    )


class Source:
    """A set of images.

    name: how messages call it.
    labels: (N,) int64, -1 where a single image has none; None: there are no labels.
    classes: their names, `classes[label]`.
    in_chans: channels of the images where all have the same known number, else None.
    """

    def __init__(
        self,
        name: str,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        in_chans: int | None = None,
    ):
        self.name = name
        self.labels = labels
        self.classes = classes
        self.in_chans = in_chans
        self._tensors: dict[int | None, Tensor | None] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def open(self, index: int) -> Picture:
        """The image at `index`, header read, pixels not yet decoded. Raises BadImage."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Where the image comes from, for messages: a path, or "train.parquet row 17"."""
        return f"{self.name} image {index}"

    def key(self, index: int) -> str:
        """What identifies the image wherever the data set lies: by it, images are held out for tests."""
        return str(index)

    def test(self) -> "Source | None":
        """The test images that come with the data set, or None."""
        return None

    def read(self, index: int, in_chans: int | None = None) -> UInt8[Tensor, "C H W"]:
        """The image at its native size. Raises BadImage."""
        return self.open(index).pixels(in_chans)

    def as_tensor(self, in_chans: int | None = None) -> UInt8[Tensor, "N C H W"] | None:
        """All images at once, kept for the next call; None unless they are small (`SMALL_IMAGE`), few enough for
        `MEMORY_LIMIT`, of one size and all readable.
        """
        if in_chans not in self._tensors:
            try:
                self._tensors[in_chans] = self._decode_all(in_chans)
            except BadImage:
                self._tensors[in_chans] = None
        return self._tensors[in_chans]

    def _decode_all(self, in_chans: int | None) -> UInt8[Tensor, "N C H W"] | None:
        """All images at once, or None. Raises BadImage."""
        first = self.read(0, in_chans)
        second_size = self.open(min(1, len(self) - 1)).size
        small = first.shape[1] * first.shape[2] <= SMALL_IMAGE and first.numel() * len(self) <= MEMORY_LIMIT
        if not small or first.shape[1:] != second_size:
            return None
        images = torch.empty((len(self), *first.shape), dtype=torch.uint8)

        def fill(start: int) -> bool:
            for index in range(start, min(start + 256, len(self))):
                try:
                    image = self.read(index, in_chans)
                except BadImage:
                    return False
                if image.shape != first.shape:
                    return False
                images[index] = image
            return True

        with ThreadPoolExecutor() as threads:
            filled = threads.map(fill, range(0, len(self), 256))
            if all(filled):
                return images
            threads.shutdown(cancel_futures=True)
        return None

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Subset":
        """The images at `indices`, in that order, as a source."""
        return Subset(self, np.asarray(indices, dtype=np.int64))

    def labelled(self) -> "Source":
        """The images that have a label, as a source."""
        if self.labels is None:
            return self.subset([])
        return self if (self.labels >= 0).all() else self.subset(np.flatnonzero(self.labels >= 0))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tensors": {}}  # workers read images one by one

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)


class Subset(Source):
    """Some images of another source."""

    def __init__(self, source: Source, indices: np.ndarray):
        labels = None if source.labels is None else source.labels[indices]
        super().__init__(source.name, labels, source.classes, source.in_chans)
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Picture:
        """As the source."""
        return self.source.open(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """As the source."""
        return self.source.describe(int(self.indices[index]))

    def key(self, index: int) -> str:
        """As the source."""
        return self.source.key(int(self.indices[index]))

    def _decode_all(self, in_chans: int | None) -> UInt8[Tensor, "N C H W"] | None:
        images = self.source.as_tensor(in_chans)
        return None if images is None else images[torch.from_numpy(self.indices)]
