"""Evaluation views: what probes, pictures and `embed` see of an image."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.crops import center_box, render, resized_crop
from mimkit.data.source import BadImage, Size, Source
from mimkit.errors import UserError


def views(
    source: Source,
    image_size: Size,
    in_chans: int,
    indices: Sequence[int] | np.ndarray,
    bad: dict[int, str] | None = None,
) -> UInt8[Tensor, "n C H W"]:
    """The images at `indices`, each resized so that it just covers `image_size` (h, w), and cut at the centre.

    bad: takes {index: reason} of images that cannot be read; their views are black, and not to be used.
    Raises UserError for an image that cannot be read where `bad` is not given.
    """
    indices = np.asarray(indices, dtype=np.int64)
    images = source.as_tensor(in_chans)
    if images is not None:
        box = torch.tensor(center_box((images.shape[2], images.shape[3]), image_size))
        chosen = images[torch.from_numpy(indices)]
        return resized_crop(
            chosen, box.expand(len(indices), 4), torch.zeros(len(indices), dtype=torch.bool), image_size
        )
    out = torch.zeros((len(indices), in_chans, *image_size), dtype=torch.uint8)

    def fill(row: int) -> tuple[int, str] | None:
        index = int(indices[row])
        try:
            picture = source.open(index)
            out[row] = render(picture, center_box(picture.size, image_size), False, image_size, in_chans)
        except BadImage as error:
            return index, str(error)
        return None

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        failed = dict(failure for failure in threads.map(fill, range(len(indices))) if failure)
    if failed and bad is None:
        index, reason = next(iter(failed.items()))
        raise UserError(f"{source.describe(index)}: {reason}")
    if bad is not None:
        bad.update(failed)
    return out
