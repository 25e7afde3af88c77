"""From what the recipe names to images for training and for tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from mimkit import registry
from mimkit.data.kinds import kind_of
from mimkit.data.source import Size, Source
from mimkit.errors import UserError

HELD_OUT = 10  # one image in so many is a test image where there are labels but no test images


@dataclass(frozen=True)
class Data:
    """Images to train on and, where there are any, images that are never trained on."""

    train: Source
    test: Source | None
    name: str


def open_data(name: str, options: Mapping[str, Any], image_size: Size, in_chans: int) -> Data:
    """The data that a recipe names, for training and for tests; arguments as `open_source`.

    Where there are labels but no test images, a tenth of the labelled images is held out, chosen by file name or index.
    Raises UserError.
    """
    train = open_source(name, options, image_size, in_chans)
    test = train.test()
    if test is None and train.labels is not None:
        train, test = hold_out(train)
    return Data(train, test, name)


def open_source(name: str, options: Mapping[str, Any], image_size: Size, in_chans: int) -> Source:
    """All training images: `name` is a source, or a path whose kind is recognised from what lies there.

    options: the source's own. The facts image_size and in_chans are handed on to sources that take them.
    Raises UserError.
    """
    facts = {"image_size": image_size, "in_chans": in_chans}
    kind = kind_of(name)
    try:
        source = registry.build("data", kind, options if kind == name else {"path": name, **options}, facts)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    assert isinstance(source, Source)
    return source


def hold_out(source: Source) -> tuple[Source, Source | None]:
    """Training and test images of a labelled source: by a hash of each image's key, so that added images move none."""
    assert source.labels is not None
    hashes = (
        int.from_bytes(blake2b(source.key(i).encode("utf-8", "surrogateescape"), digest_size=8).digest())
        for i in range(len(source))
    )
    held = np.array([value % HELD_OUT == 0 for value in hashes]) & (source.labels >= 0)
    if not held.any() or held.all():
        return source, None
    return source.subset(np.flatnonzero(~held)), source.subset(np.flatnonzero(held))
