"""A folder of image files."""

import csv
import os
from copy import copy
from pathlib import Path

import numpy as np
import torch

from mimkit.data.arrays import ValueRange, channels_first, to_uint8
from mimkit.data.decode import EncodedPicture
from mimkit.data.files import EXTENSIONS, Paths, list_files, what_lies_in
from mimkit.data.source import BadImage, Picture, Pixels, Source
from mimkit.errors import UserError, nearest

TEST_FOLDERS = ("val", "validation", "valid", "test")


class Folder(Source):
    """Image files and .npy arrays (one image each) below a folder; `train/` and `val/` or `test/` in it are its splits.

    path: the folder, or one image file.
    labels: auto (folders are classes where all images lie in two or more of them), none, or a CSV file with the
        columns file,label; the files relative to `path`.
    value_range: what becomes 0 and 255 in arrays and in 16-bit and float images; default: (0, 65535) for 16 bits,
        (0, 1) for floats.
    """

    def __init__(self, *, path: str, labels: str = "auto", value_range: ValueRange | None = None):
        self.path, self.label_option, self.value_range = path, labels, value_range
        self.split = "train" if (Path(path) / "train").is_dir() else ""
        self._index(None)

    def _index(self, classes: list[str] | None) -> None:
        """Lists the split's files and labels them; `classes`: those of the training split, if it is indexed already."""
        root = Path(self.path) / self.split
        self.root = str(root)
        files = [""] if root.is_file() else list_files(self.root, (*EXTENSIONS, ".npy"))
        if not files:
            found = what_lies_in(self.root)
            raise UserError(f"no images in {self.root}: found {found}; read are {' '.join((*EXTENSIONS, '.npy'))}")
        names = self._class_names(files, classes)
        labels = None
        if names is not None:
            classes = sorted({name for name in names if name}, key=by_number) if classes is None else classes
            unknown = set(names) - set(classes) - {""}
            if unknown:
                raise UserError(f"{self.root} has the class '{min(unknown)}', which the training images do not have")
            number = {name: label for label, name in enumerate(classes)} | {"": -1}
            labels = np.array([number[name] for name in names], dtype=np.int64)
        super().__init__(self.root, labels, classes if names else None)
        self.files = Paths(files)

    def _class_names(self, files: list[str], known: list[str] | None) -> list[str] | None:
        if self.label_option == "none":
            return None
        if self.label_option == "auto":
            names = [file.partition("/")[0] if "/" in file else "" for file in files]
            return names if all(names) and (known or len(set(names)) > 1) else None
        prefix = f"{self.split}/" if self.split else ""
        return names_from_csv(self.label_option, [prefix + file for file in files], self.path)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """The path below the folder."""
        return self.files[index]

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(Path(self.root) / self.files[index])

    def open(self, index: int) -> Picture:
        """See Source."""
        path = f"{self.root}/{self.files[index]}" if self.files[index] else self.root
        try:
            if path.lower().endswith(".npy"):
                values = np.load(path, mmap_mode="r", allow_pickle=False)
                return Pixels(
                    torch.from_numpy(np.ascontiguousarray(to_uint8(channels_first(values), self.value_range)))
                )
            with open(path, "rb") as file:  # noqa: PTH123 (this is the hot path)
                return EncodedPicture(file.read(), self.value_range)
        except OSError as error:
            raise BadImage(f"the file cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise BadImage(f"the array cannot be read: {error}") from None

    def test(self) -> "Folder | None":
        """The images in `val/`, else `validation/`, `valid/` or `test/`, where there is `train/` too."""
        found = [name for name in TEST_FOLDERS if (Path(self.path) / name).is_dir()]
        if self.split != "train" or not found:
            return None
        test = copy(self)
        test.split = found[0]
        test._index(self.classes)
        return test


def names_from_csv(csv_path: str, files: list[str], root: str) -> list[str]:
    """Each file's label from a CSV file, "" for those without one. Raises UserError where the two do not fit."""
    try:
        with Path(csv_path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{csv_path} needs the columns file,label; it has {','.join(reader.fieldnames or ())}")
            labels = {os.path.normpath(row["file"]): row["label"] or "" for row in reader}
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"data.labels={csv_path} cannot be read: {error}; it takes auto, none or a CSV file") from None
    names = [labels.get(file, "") for file in files]
    if not any(names):
        example = next(iter(labels), "nothing")
        raise UserError(
            f"{csv_path} labels no image below {root}: it names '{example}'{nearest(example, files[:1000])}"
        )
    return names


def by_number(name: str) -> tuple[int, str]:
    """Sorts 2 before 10, and words after numbers."""
    return (int(name), name) if name.isascii() and name.isdigit() else (1 << 62, name)
