"""Features on disk: a file of float32 rows, and beside it a JSON that says of what they are and how many."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.disk import write_atomically, write_text
from mimkit.errors import UserError

Parts = Iterator[tuple[np.ndarray, Tensor]]


def cached(folder: Path, of: Mapping[str, Any], count: int, extract: Callable[[], Parts]) -> tuple[Tensor, np.ndarray]:
    """Features (N, …) and which of the `count` images they are of: from `folder`, else extracted and written there.

    of: all that the features depend on, as JSON can hold it. extract: gives images and their features part by part;
    what it leaves out was unreadable. The features stay on the disk and are read when they are used.
    Raises UserError where the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:20]
    rows, about = folder / f"{key}.f32", folder / f"{key}.json"
    try:
        shape, unreadable = _told(rows, about)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shape, unreadable = _write(rows, count, extract())
            write_text(about, json.dumps({**of, "shape": shape, "unreadable": unreadable}, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"features cannot be kept in {folder}: {error.strerror}; name another folder with cache=FOLDER"
            ) from error
    features = np.memmap(rows, np.float32, "c", shape=tuple(shape))
    return torch.from_numpy(features), np.setdiff1d(np.arange(count), unreadable)


def _told(rows: Path, about: Path) -> tuple[list[int], list[int]]:
    """Shape and unreadable images. Raises ValueError and others where the two files are not whole."""
    told = json.loads(about.read_text(encoding="utf-8"))
    shape, unreadable = [int(side) for side in told["shape"]], [int(index) for index in told["unreadable"]]
    if rows.stat().st_size != 4 * np.prod(shape):
        raise ValueError(f"{rows} is not of shape {shape}")
    return shape, unreadable


def _write(path: Path, count: int, parts: Parts) -> tuple[list[int], list[int]]:
    """Shape and unreadable images of what `parts` gave. Raises OSError (disk full, …)."""
    shape, read = [0], np.zeros(count, dtype=bool)

    def fill(beside: Path) -> None:
        with beside.open("wb") as file:
            for indices, features in parts:
                read[indices] = True
                shape[:] = [shape[0] + len(indices), *features.shape[1:]]
                file.write(features.numpy().astype(np.float32, copy=False).tobytes())

    write_atomically(path, fill)
    return shape, np.flatnonzero(~read).tolist()
