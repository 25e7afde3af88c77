"""Shared by the tests of data: images as files, bytes and sources."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mimkit.data.open import open_data

SHARED = Path(__file__).parents[1] / "../shared/data"
COLOR = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def opened(name, in_chans=3, **options):
    return open_data(str(name), options, (32, 32), in_chans)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save(path: Path, pixels: np.ndarray = COLOR) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def write_parquet(path: Path, labels: list, names: list[str] | None = None, column: str = "img") -> None:
    images = [encoded(Image.fromarray(np.full((6, 7, 3), number, np.uint8)), "PNG") for number in range(len(labels))]
    table = pa.table(
        {
            "id": [str(number) for number in range(len(labels))],
            column: [{"bytes": image, "path": None} for image in images],
            "label": labels,
        }
    )
    if names:
        described = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
