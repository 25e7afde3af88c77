"""Parquet files as Hugging Face lays data sets out."""

import json
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimkit.data.decode import EncodedPicture
from mimkit.data.files import list_files, what_lies_in
from mimkit.data.source import MEMORY_LIMIT, BadImage, Picture, Source
from mimkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TEST_FILES = ("val", "test")  # how the names of test files begin; the first that occurs is taken


class Parquet(Source):
    """Encoded images in a column of one or several parquet files; train*, val* and test* in their names are splits.

    Up to 2 GiB are held in memory; of larger data the row group around an image is read each time, which is slow.

    path: a parquet file, or a folder of them.
    image_column: the images' column; default: the first that holds images.
    label_column: the labels' column; default: the first of class labels, or named label.
    """

    def __init__(self, *, path: str, image_column: str | None = None, label_column: str | None = None):
        root = Path(path)
        files = [path] if root.is_file() else [str(root / file) for file in list_files(path, (".parquet",))]
        if not files:
            raise UserError(f"no parquet files in {path}: found {what_lies_in(path)}")
        beginnings = {start: [file for file in files if Path(file).name.startswith(start)] for start in TEST_FILES}
        train = [file for file in files if not any(file in found for found in beginnings.values())]
        self.image_column, self.label_column = image_column, label_column
        self.test_files = next((found for found in beginnings.values() if found), []) if train else []
        self._index(train or files)

    def _index(self, files: list[str]) -> None:
        """Reads the schema and the labels, and the images where they are few enough."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.files = files
        try:
            opened = [pq.ParquetFile(file) for file in files]
            schema = opened[0].schema_arrow
            image, label = find_columns(schema, files[0], self.image_column, self.label_column)
            self.image_column, self.label_column = image, label
            rows = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in opened]
            labels, classes = read_labels(files, label, schema) if label else (None, None)
            fits = sum(Path(file).stat().st_size for file in files) <= MEMORY_LIMIT
            self.images = pq.read_table(files, columns=[image]).column(image) if fits else None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{files[0]} or its neighbours cannot be read as parquet: {error}") from None
        name = files[0] if len(files) == 1 else str(Path(files[0]).parent)
        super().__init__(name, labels, classes)
        self.groups = [(file, group) for file, counts in enumerate(rows) for group in range(len(counts))]
        self.group_starts = np.cumsum([0] + [count for counts in rows for count in counts])
        self.file_starts = np.cumsum([0] + [sum(counts) for counts in rows])

    def __len__(self) -> int:
        return int(self.file_starts[-1])

    def describe(self, index: int) -> str:
        """The file and the row in it."""
        file = int(np.searchsorted(self.file_starts, index, side="right")) - 1
        return f"{self.files[file]} row {index - self.file_starts[file]}"

    def open(self, index: int) -> Picture:
        """See Source."""
        image = self.images[index] if self.images is not None else self._from_row_group(index)
        data = image["bytes"] if hasattr(image, "keys") else image
        if not data.is_valid:
            raise BadImage("the row holds no image")
        return EncodedPicture(data.as_py())

    def _from_row_group(self, index: int) -> "pa.Scalar[Any]":
        import pyarrow.parquet as pq

        number = int(np.searchsorted(self.group_starts, index, side="right")) - 1
        file, group = self.groups[number]
        with pq.ParquetFile(self.files[file]) as opened:
            column = opened.read_row_group(group, columns=[self.image_column], use_threads=False).column(0)
        return column[index - int(self.group_starts[number])]

    def test(self) -> "Parquet | None":
        """The images in the files val*, else test*, where there are others too."""
        if not self.test_files:
            return None
        test = copy(self)
        test.test_files = []
        test._index(self.test_files)
        return test


def features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Hugging Face's description of the columns, empty where there is none."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in described.items() if isinstance(feature, dict)}


def find_columns(schema: "pa.Schema", file: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The columns of images and labels. Raises UserError where there is no such column."""
    import pyarrow as pa

    described = features(schema)
    for option, column in (("image_column", image), ("label_column", label)):
        if column is not None and column not in schema.names:
            raise UserError(f"{file} has no column '{column}' for data.{option}; it has: {', '.join(schema.names)}")
    images = [name for name, feature in described.items() if feature.get("_type") == "Image"]
    images += [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    images += [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    labels = [name for name, feature in described.items() if feature.get("_type") == "ClassLabel"]
    labels += [name for name in schema.names if name in ("label", "labels", "fine_label", "class")]
    if image is None and not images:
        raise UserError(f"{file} has no column of images; it has: {', '.join(schema.names)}")
    return image or images[0], label or next(iter(labels), None)


def read_labels(files: list[str], column: str, schema: "pa.Schema") -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int64, -1 where there is none, and the classes' names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pq.read_table(files, columns=[column]).column(column)
    if pa.types.is_integer(values.type):
        labels = values.fill_null(-1).to_numpy().astype(np.int64)
        names = features(schema).get(column, {}).get("names")
        return labels, names or [str(label) for label in range(labels.max(initial=-1) + 1)]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise UserError(f"{files[0]}: the column '{column}' holds {values.type}; labels are integers or strings")
    names = sorted(name for name in values.unique().to_pylist() if name is not None)
    number = {name: label for label, name in enumerate(names)} | {None: -1}
    return np.array([number[name] for name in values.to_pylist()], dtype=np.int64), names
