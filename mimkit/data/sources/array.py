"""One array of images: .npy or .npz."""

from copy import copy
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.arrays import ValueRange, to_uint8
from mimkit.data.source import MEMORY_LIMIT, SMALL_IMAGE, BadImage, Picture, Pixels, Source, to_channels
from mimkit.errors import UserError

IMAGE_KEYS = ("images", "x", "data", "arr_0", "x_train", "train_images")
LABEL_KEYS = ("labels", "label", "y", "targets", "y_train", "train_labels")
TEST_KEYS = ("test_images", "x_test"), ("test_labels", "y_test")


class Array(Source):
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) in a .npy file, or in a .npz file with their labels.

    Of the second and the last axis the shorter one is the channels', else the last. In a .npz file images are found as
    images, x or x_train, labels as labels, y or y_train, test images as test_images or x_test.

    path: the file. A .npy file is not read into memory as a whole.
    value_range: what becomes 0 and 255; default: (0, 255) for uint8, (0, 65535) for uint16, (0, 1) for floats.
    """

    def __init__(self, *, path: str, value_range: ValueRange | None = None):
        self.path = path
        try:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            arrays = (
                {"images": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
            )
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise UserError(f"{path} cannot be read as an array: {error}") from None
        images, labels = first_of(arrays, IMAGE_KEYS), first_of(arrays, LABEL_KEYS)
        if images is None:
            raise UserError(
                f"{path} has no array of images; named {', '.join(IMAGE_KEYS)}; it has: {', '.join(arrays)}"
            )
        self._test_arrays = first_of(arrays, TEST_KEYS[0]), first_of(arrays, TEST_KEYS[1])
        self._set(images, labels, value_range)

    def _set(self, images: np.ndarray, labels: np.ndarray | None, value_range: ValueRange | None) -> None:
        self.images, self.value_range = images_first(images, self.path), value_range
        if labels is not None:
            labels = labels.reshape(-1)
            if len(labels) != len(images) or labels.dtype.kind not in "iu":
                raise UserError(f"{self.path}: {len(images)} images need as many integer labels, got {labels.shape}")
            labels = labels.astype(np.int64)
        classes = None if labels is None else [str(label) for label in range(labels.max(initial=-1) + 1)]
        super().__init__(self.path, labels, classes, self.images.shape[1])
        try:
            to_uint8(self.images[:1], value_range)
        except BadImage as error:
            raise UserError(f"{self.path}: {error}") from None

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, index: int) -> str:
        """The file and the image's number."""
        return f"{self.path} image {index}"

    def open(self, index: int) -> Picture:
        """See Source."""
        return Pixels(torch.from_numpy(np.array(to_uint8(self.images[index], self.value_range))))

    def _decode_all(self, in_chans: int | None) -> UInt8[Tensor, "N C H W"] | None:
        _, channels, height, width = self.images.shape
        if height * width > SMALL_IMAGE or len(self) * max(channels, in_chans or 0) * height * width > MEMORY_LIMIT:
            return None
        images = torch.from_numpy(np.array(to_uint8(self.images, self.value_range)))
        return images if in_chans is None else to_channels(images, in_chans)

    def test(self) -> "Array | None":
        """The test images of a .npz file."""
        images, labels = self._test_arrays
        if images is None:
            return None
        test = copy(self)
        test._test_arrays = None, None
        test._set(images, labels, self.value_range)
        return test


def first_of(arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray | None:
    """The first of the named arrays that is there."""
    return next((arrays[key] for key in keys if key in arrays), None)


def images_first(images: np.ndarray, path: str) -> np.ndarray:
    """The array as (N, C, H, W), without copying. Raises UserError for other numbers of axes, and for no images."""
    if images.ndim not in (3, 4) or images.size == 0:
        raise UserError(f"{path} has the shape {images.shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] < images.shape[3] else np.moveaxis(images, 3, 1)
