"""From what the recipe names to images for training and for tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from mimkit import registry
from mimkit.data.decode import EXTENSIONS
from mimkit.data.files import walk, what_lies_in
from mimkit.data.source import Size, Source
from mimkit.errors import UserError, nearest

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
    named = name in registry.names("data")
    try:
        if named:
            source = registry.build("data", name, options, facts)
        else:
            source = registry.build("data", kind_of(name), {"path": name, **options}, facts)
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


def source_class(name: str) -> type[Source]:
    """The class of the source `name`, or the one that reads what lies at the path `name`. Raises UserError."""
    found = registry.find("data", name if name in registry.names("data") else kind_of(name))
    assert issubclass(found, Source)
    return found


def kind_of(path: str) -> str:
    """The name of the source that reads what lies at `path`. Raises UserError where nothing does."""
    try:
        if Path(path).is_dir():
            kinds = (kind_of_file(file) for file in walk(path))
            kind = next((kind for kind in kinds if kind), None)
            if kind is None:
                raise UserError(f"no images in {path}: found {what_lies_in(path)}; read are {readable()}")
            return "folder" if kind == "array" else kind
        if not Path(path).exists():
            raise UserError(f"there is no data at '{path}'{near_miss(path)}")
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    kind = kind_of_file(path)
    if kind is None:
        raise UserError(f"{path} is not data that can be read; read are folders and {readable()}")
    return kind


def kind_of_file(path: str) -> str | None:
    """The source that a file's extension speaks of."""
    extension = Path(path).suffix.lower()
    if extension in EXTENSIONS:
        return "folder"
    return {".parquet": "parquet", ".npy": "array", ".npz": "array"}.get(extension)


def readable() -> str:
    """The extensions that are read."""
    return " ".join((*EXTENSIONS, ".npy .npz .parquet"))


def near_miss(path: str) -> str:
    """What the user may have meant: a sibling of the path, or a source's name."""
    parent = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    missing = Path(path).absolute().relative_to(parent).parts[0]
    here = [entry.name for entry in parent.iterdir()]
    guess = nearest(missing, here)
    if guess:
        return guess
    sources = registry.names("data")
    return nearest(path, sources) or f"; data takes a path or one of {', '.join(sources)}"
