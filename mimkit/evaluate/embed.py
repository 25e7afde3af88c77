"""Features of a set of images into a file."""

from pathlib import Path
from typing import Any

import numpy as np

from mimkit.data.open import open_source
from mimkit.disk import write_atomically
from mimkit.errors import UserError
from mimkit.evaluate.features import pooled_features
from mimkit.saved.encoder import load

FORMATS = (".npz", ".parquet", ".csv")


def embed(weights: Path, images: str, output: Path) -> str:
    """Write features (N, D), file names and labels to .npz, .parquet or .csv; gives a line that says what was written.

    Where the data have test images of their own, theirs follow, and `split` says which is which. Unreadable images are
    left out and counted. Raises UserError for another format, missing weights or images.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"-o {output}: the name should end in {', '.join(FORMATS)}")
    encoder = load(weights)
    source = open_source(images, {}, encoder.image_size, encoder.in_chans)
    test = source.test()
    splits = {"train": source} if test is None else {"train": source, "test": test}
    found: list[np.ndarray] = []
    columns: dict[str, list[Any]] = {"path": [], "split": [], "label": []}
    for split, images_of in splits.items():
        features, read = pooled_features(encoder, images_of, np.arange(len(images_of)))
        found.append(features.numpy())
        columns["path"] += [images_of.describe(int(index)) for index in read]
        columns["split"] += [split] * len(read)
        columns["label"] += [] if images_of.labels is None else images_of.labels[read].tolist()
    whole, count = np.concatenate(found), sum(map(len, splits.values()))
    if test is None:
        del columns["split"]
    if len(columns["label"]) < len(whole):
        del columns["label"]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda beside: _write(beside, whole, {name: np.array(x) for name, x in columns.items()}))
    left_out = f"; {count - len(whole)} unreadable images left out" if len(whole) < count else ""
    return f"{output}: {len(whole)} features of width {whole.shape[1]}{left_out}"


def _write(path: Path, features: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"features": features, **columns}
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        rows = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        parquet.write_table(pa.table({**columns, "features": rows}), path)
    else:
        csv.write_csv(pa.table({**columns, **{f"f{i}": features[:, i] for i in range(features.shape[1])}}), path)
