"""Labelled images for probes: those to fit to and those to test on, and whether the two belong together."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from mimkit.data.files import walk
from mimkit.data.open import Data
from mimkit.data.source import Source
from mimkit.errors import UserError
from mimkit.evaluate.features import spread
from mimkit.evaluate.frozen import Split


def labelled_sources(data: Data, bank: int | None = None, queries: int | None = None) -> dict[Split, Source]:
    """The labelled images to fit to and to test on, at most `bank` and `queries` of them.

    Raises UserError where the data cannot serve as such.
    """
    if data.train.labels is None:
        raise UserError(
            f"data '{data.name}' has no labels, and probes need them: class folders, or data.labels=FILE.csv"
        )
    if data.test is None:
        raise UserError(f"data '{data.name}' has no test images and too few to hold a tenth out; add val/ or test/")
    if data.test.labels is None:
        raise UserError(f"the test images of '{data.name}' have no labels, and probes need them")
    sources: dict[Split, Source] = {"train": data.train.labelled(), "test": data.test.labelled()}
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"no {split} image of '{data.name}' has a label, and probes need them")
    check_classes(data.name, sources["train"], sources["test"])
    for split, most in (("train", bank), ("test", queries)):
        if most is not None and most < len(sources[split]):
            sources[split] = sources[split].subset(spread(len(sources[split]), most))
    return sources


def labels_sha256(sources: Mapping[Split, Source]) -> str:
    """Changes with the labels of any image, and with the classes' names."""
    seen = sha256()
    for split, source in sources.items():
        assert source.labels is not None
        seen.update(f"{split}\0{source.classes}\0".encode("utf-8", "surrogateescape") + source.labels.tobytes())
    return seen.hexdigest()


def check_classes(name: str, train: Source, test: Source) -> None:
    """Raise UserError where a label means one class in training and another in the test, or no class in training."""
    known, asked = _classes(train), _classes(test)
    if len(known) < 2:
        raise UserError(f"all training images of '{name}' are of one class, {known}; probes need two")
    for label, called in asked.items():
        if label not in known:
            raise UserError(f"the test images of '{name}' have the class '{called}', which no training image has")
        if called != known[label]:
            raise UserError(
                f"label {label} of '{name}' is '{known[label]}' among the training images and '{called}' among the test "
                "images: both need the same classes"
            )


def _classes(source: Source) -> dict[int, str]:
    """The labels that occur, and their classes' names."""
    assert source.labels is not None
    return {int(label): str(source.classes[label] if source.classes else label) for label in np.unique(source.labels)}


def fingerprint(name: str, source: Source) -> str:
    """Changes with the images: their keys and order and, where `name` is a path, the size and time of each file there."""
    seen = sha256()
    for index in range(len(source)):
        seen.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    return sha256(f"{seen.hexdigest()}{files_sha256(Path(name))}".encode()).hexdigest()


def files_sha256(path: Path) -> str:
    """Changes with the names, sizes and times of the files at `path`; empty where nothing is there."""
    seen = sha256()
    files = [path] if path.is_file() else [path / each for each in walk(str(path))] if path.is_dir() else []
    for file in files:
        status = file.stat()
        seen.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return seen.hexdigest() if files else ""
