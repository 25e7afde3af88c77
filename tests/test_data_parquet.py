"""Parquet files as Hugging Face lays them out."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mimkit.data.source import BadImage
from mimkit.data.sources import parquet
from tests.images import SHARED, opened, write_parquet


@pytest.mark.parametrize("limit", [2 * 1024**3, 0])  # held in memory, and read row group by row group
def test_parquet_shards_and_splits(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(parquet, "MEMORY_LIMIT", limit)
    names = ["cat", "dog"]
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 1, 0, 1], names)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", [1, 1], names)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [0, 0, 1, 0], names)
    (tmp_path / "README.md").write_text("")
    data = opened(tmp_path)
    assert data.train.classes == names
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 0]
    assert [int(data.train.read(i).unique()) for i in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert int(data.test.read(3).unique()) == 3
    assert data.train.describe(6).endswith("train-00001-of-00002.parquet row 1")
    assert torch.equal(data.train.as_tensor(3)[5], data.train.read(5))


def test_parquet_with_names_for_labels_and_without_metadata(tmp_path):
    write_parquet(tmp_path / "all.parquet", ["dog", None, "ant"], column="picture")
    source = parquet.Parquet(path=str(tmp_path / "all.parquet"))
    assert source.classes == ["ant", "dog"] and source.labels.tolist() == [1, -1, 0]
    assert source.read(2).shape == (3, 6, 7)


def test_parquet_row_without_image_is_a_bad_image(tmp_path):
    pq.write_table(
        pa.table({"img": [{"bytes": None, "path": "x"}, {"bytes": b"x", "path": "y"}]}), tmp_path / "a.parquet"
    )
    source = parquet.Parquet(path=str(tmp_path / "a.parquet"))
    for index, reason in ((0, "holds no image"), (1, "not an image")):
        with pytest.raises(BadImage, match=reason):
            source.read(index)


@pytest.mark.skipif(not (SHARED / "cifar10").exists(), reason="needs the shared data")
def test_cifar10_as_hugging_face_lays_it_out():
    data = opened(SHARED / "cifar10")
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.classes[:2] == ["airplane", "automobile"]
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    test = data.test.as_tensor(3)
    assert test.shape == (10000, 3, 32, 32)
    assert torch.equal(test[77], data.test.read(77))
