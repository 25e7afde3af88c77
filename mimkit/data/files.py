"""Finding files: quickly, in one order on every file system, through links but not around in circles."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mimkit.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


class Paths:
    """Many relative paths in two arrays: small, and shared by forked workers without copies."""

    def __init__(self, paths: list[str]):
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([0] + [len(path) for path in encoded])
        self.text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.text[self.ends[index] : self.ends[index + 1]])


def walk(root: str, chain: tuple[str, ...] = ()) -> Iterator[str]:
    """Files below the folder `root`, relative to it, those of a folder before those of its subfolders.

    Hidden files and folders (a leading dot) are passed over, and links to a folder that contains them.
    chain: real paths of the folders that links led from, and of `root`; walked into by the function itself.
    Raises UserError where a folder cannot be read.
    """
    chain = chain or (os.path.realpath(root),)
    try:
        with os.scandir(root) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {root} cannot be read: {error.strerror}") from None
    folders: list[tuple[str, tuple[str, ...]]] = []
    for entry in entries:
        link = entry.is_symlink()
        if not (Path(entry.path).is_dir() if link else entry.is_dir()):
            if link or entry.is_file():
                yield entry.name
        elif not link:
            folders.append((entry.name, (*chain[:-1], f"{chain[-1]}/{entry.name}")))
        else:
            target = os.path.realpath(entry.path)
            if not any(f"{folder}/".startswith(f"{target}/") for folder in chain):
                folders.append((entry.name, (*chain, target)))
    for name, below in folders:
        for path in walk(f"{root}/{name}", below):
            yield f"{name}/{path}"


def list_files(root: str, extensions: tuple[str, ...]) -> list[str]:
    """Files below `root` with one of the extensions (lower case, with the dot; any case in the names), sorted."""
    return sorted(path for path in walk(root) if path.lower().endswith(extensions))


def what_lies_in(root: str) -> str:
    """In a few words, for messages: "3 files (.txt 2, .md 1)"."""
    endings: dict[str, int] = {}
    for path in walk(root):
        ending = Path(path).suffix or "no extension"
        endings[ending] = endings.get(ending, 0) + 1
    if not endings:
        return "no files"
    most = sorted(endings.items(), key=lambda item: -item[1])[:3]
    return f"{sum(endings.values())} files ({', '.join(f'{ending} {count}' for ending, count in most)})"
