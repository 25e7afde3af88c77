"""Arrays, shapes, torchvision's data sets; wrong inputs of all sources; the survey."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mimkit.data.kinds import kind_of
from mimkit.data.source import Source
from mimkit.data.sources import array, cifar10, imagenet, stl10
from mimkit.data.sources.shapes import FORMS, Shapes
from mimkit.data.survey import survey
from mimkit.errors import UserError
from tests.images import opened, save, write_parquet

# ---- arrays


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((4, 5, 6), (1, 5, 6)), ((4, 5, 6, 3), (3, 5, 6)), ((4, 3, 5, 6), (3, 5, 6)), ((4, 12, 40, 50), (12, 40, 50))],
)
def test_array_layouts(tmp_path, stored, shape):
    values = np.random.default_rng(0).integers(0, 256, stored, dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    source = opened(tmp_path / "x.npy", shape[0]).train
    assert len(source) == 4 and source.in_chans == shape[0]
    image = values[2].reshape(shape) if values[2].size and stored[-1] != 3 else values[2].transpose(2, 0, 1)
    np.testing.assert_array_equal(source.read(2).numpy(), image)
    assert torch.equal(source.as_tensor()[2], source.read(2))


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.array([0.0, 0.5, 1.0]), None, [0, 128, 255]),
        (np.array([0, 257, 65535], np.uint16), None, [0, 1, 255]),
        (np.array([0, 2000, 5000], np.uint16), (0, 4000), [0, 128, 255]),
        (np.array([-3, 0, 3], np.int16), (-3, 3), [0, 128, 255]),
    ],
)
def test_value_ranges_become_0_to_255(tmp_path, values, value_range, expected):
    np.save(tmp_path / "x.npy", values.reshape(1, 1, 3))
    assert array.Array(path=str(tmp_path / "x.npy"), value_range=value_range).read(0).flatten().tolist() == expected


def test_npz_has_labels_and_test_images(tmp_path):
    images = np.zeros((4, 5, 6), np.uint8)
    np.savez(tmp_path / "m.npz", x_train=images, y_train=[0, 1, 2, 1], x_test=images[:2], y_test=[[2], [0]])
    data = opened(tmp_path / "m.npz", 1)
    assert data.train.labels.tolist() == [0, 1, 2, 1] and data.test.labels.tolist() == [2, 0]


# ---- shapes


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((29, 41), 1), ((64, 48), 12)])
def test_shapes_have_the_same_bits_alone_and_together(size, channels):
    source = Shapes(num_images=150, image_size=size, in_chans=channels)
    together = source.as_tensor()
    assert together.shape == (150, channels, *size)
    assert all(torch.equal(source.read(i), together[i]) for i in range(0, 150, 7))
    assert torch.equal(Shapes(num_images=3, image_size=size, in_chans=channels).as_tensor(), together[:3])


def test_shapes_follow_the_seed_and_test_images_are_others():
    one = Shapes(num_images=50)
    assert not torch.equal(one.as_tensor(), Shapes(num_images=50, seed=1).as_tensor())
    assert not torch.equal(one.as_tensor(), one.test().as_tensor()[:50])
    assert len(one.test()) == 2000 and one.test().test() is None


def test_every_form_is_drawn_and_stands_out():
    source = Shapes(num_images=2000, image_size=(16, 16))
    counts = np.bincount(source.labels, minlength=len(FORMS))
    assert counts.min() > 140
    contrast = source.as_tensor().float().std((2, 3)).amax(1)
    assert contrast.min() > 8


# ---- torchvision's


def test_cifar10_by_torchvision(tmp_path):
    """Against torchvision's own class, on files made as it expects them."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (root / name).write_bytes(pickle.dumps({"data": images, "labels": [3, 1]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    from torchvision import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        data = opened("cifar10", path=str(tmp_path))
    assert (len(data.train), len(data.test)) == (10, 2)
    np.testing.assert_array_equal(data.train.read(1).numpy(), images[1].reshape(3, 32, 32))
    assert data.test.labels.tolist() == [3, 1]


# ---- wrong inputs


def make_wrong(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    for number in range(3):
        (root / f"texts/{number}.txt").write_text("")
    save(root / "photos/a/1.png")
    save(root / "photos/b/1.png")
    save(root / "splits/train/a/1.png")
    save(root / "splits/train/b/1.png")
    save(root / "splits/val/c/1.png")
    (root / "notes.docx").write_text("")
    (root / "columns.csv").write_text("name,class\n1,2\n")
    (root / "unknown.csv").write_text("file,label\na/2.png,x\n")
    (root / "bad.npy").write_bytes(b"none")
    (root / "bad.npz").write_bytes(b"none")
    np.save(root / "flat.npy", np.zeros(5, np.uint8))
    np.save(root / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(root / "wide.npy", np.full((2, 4, 4), 300.0))
    np.savez(root / "names.npz", pictures=np.zeros((2, 4, 4), np.uint8))
    np.savez(root / "lengths.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[1])
    (root / "bad.parquet").write_bytes(b"none")
    pq.write_table(pa.table({"text": ["a"]}), root / "text.parquet")
    write_parquet(root / "good.parquet", [0, 1])


WRONG = [
    ("photo", {}, r"there is no data at '.*photo'; did you mean 'photos'\?"),
    ("empty", {}, "no images in .*empty: found no files; read are .jpg"),
    ("texts", {}, r"no images in .*texts: found 3 files \(.txt 3\); read are .jpg"),
    ("notes.docx", {}, "is not data that can be read; read are folders and .jpg"),
    ("photos", {"labels": "columns.csv"}, "needs the columns file,label; it has name,class"),
    ("photos", {"labels": "unknown.csv"}, r"labels no image below .*: it names 'a/2.png'; did you mean 'a/1.png'\?"),
    ("photos", {"labels": "nowhere.csv"}, "cannot be read: .*; it takes auto, none or a CSV file"),
    ("splits", {}, "has the class 'c', which the training images do not have"),
    ("bad.npy", {}, "cannot be read as an array"),
    ("bad.npz", {}, "cannot be read as an array"),
    ("objects.npy", {}, "cannot be read as an array"),
    ("flat.npy", {}, r"has the shape \(5,\); images are"),
    ("wide.npy", {}, r"lie in 300…300, not 0…1; data.value_range=\[low, high\]"),
    ("names.npz", {}, "has no array of images; .* it has: pictures"),
    ("lengths.npz", {}, "2 images need as many integer labels"),
    ("bad.parquet", {}, "cannot be read as parquet"),
    ("text.parquet", {}, "has no column of images; it has: text"),
    ("good.parquet", {"label_column": "klass"}, "has no column 'klass' for data.label_column; it has: id, img, label"),
]


@pytest.mark.parametrize(("name", "options", "line"), WRONG)
def test_wrong_inputs_are_told_in_one_line(tmp_path, name, options, line):
    make_wrong(tmp_path)
    options = {key: str(tmp_path / value) if key == "labels" else value for key, value in options.items()}
    with pytest.raises(UserError, match=line) as error:
        opened(tmp_path / name, **options)
    assert "\n" not in str(error.value)


def test_a_misspelt_source_is_recognised():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        opened("cifar-10")


def test_no_network_and_no_files_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no\nroute")))
    for source in (cifar10.CIFAR10, stl10.STL10):
        with pytest.raises(UserError, match=r"not in data\.path=.* could not be downloaded: .*no route"):
            source(path=str(tmp_path))
    with pytest.raises(UserError, match="neither the folder train/ nor its archive"):
        imagenet.ImageNet(path=str(tmp_path))


def test_paths_are_recognised_by_what_lies_there(tmp_path):
    make_wrong(tmp_path)
    (tmp_path / "hub/data").mkdir(parents=True)
    write_parquet(tmp_path / "hub/data/train.parquet", [0])
    found = {name: kind_of(str(tmp_path / name)) for name in ("photos", "hub", "flat.npy", "photos/a/1.png")}
    assert found == {"photos": "folder", "hub": "parquet", "flat.npy": "array", "photos/a/1.png": "folder"}
    assert kind_of("shapes") == "shapes"


# ---- looking through


def test_survey_says_what_is_there(tmp_path):
    for number in range(4):
        save(tmp_path / f"{'ab'[number > 0]}/{number}.png")
    (tmp_path / "a/x.jpg").write_bytes(b"")
    found = survey(opened(tmp_path))["train"]
    text = str(found)
    assert "2 classes" in text and "height x width 13x17 to 13x17" in text
    assert found.images == found.looked_at
    assert list(found.bad.values()) in (["the file is empty"], [])
    assert found.modes == {"RGB": found.looked_at - len(found.bad)}


def test_subset_keeps_labels_and_names():
    source: Source = Shapes(num_images=20)
    some = source.subset([3, 19, 3])
    assert some.labels.tolist() == source.labels[[3, 19, 3]].tolist()
    assert some.describe(1) == "shapes image 19"
    assert torch.equal(some.as_tensor()[1], source.read(19))
