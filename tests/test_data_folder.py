"""Folders of images: nesting, labels, splits, odd names."""

import os

import numpy as np
import pytest

from mimkit.data.files import Paths, list_files
from mimkit.data.source import BadImage
from mimkit.data.sources import folder
from tests.images import COLOR, as_array, opened, save


def test_nested_photos_without_class_folders_have_no_labels(tmp_path):
    for name in ("b.png", "2019/may/c.PNG", "2020/a.jpg", ".hidden.png", "__/notes.txt"):
        if name.endswith("txt"):
            (tmp_path / "__").mkdir()
            (tmp_path / name).write_text("")
        else:
            save(tmp_path / name.lower()) if name[-1].islower() else save(tmp_path / name)
    data = opened(tmp_path)
    assert [data.train.key(i) for i in range(len(data.train))] == ["2019/may/c.PNG", "2020/a.jpg", "b.png"]
    assert data.train.labels is None and data.test is None
    np.testing.assert_array_equal(as_array(data.train.read(2)), COLOR)


def test_class_folders_are_labels_and_a_tenth_is_held_out(tmp_path):
    for number in range(60):
        save(tmp_path / f"{'cat' if number % 3 else 'ant'}/{number}.png")
    data = opened(tmp_path)
    assert data.train.classes == ["ant", "cat"]
    keys = {data.train.key(i) for i in range(len(data.train))} | {data.test.key(i) for i in range(len(data.test))}
    assert len(keys) == len(data.train) + len(data.test) == 60
    assert 1 <= len(data.test) <= 14
    for source in (data.train, data.test):
        assert [source.classes[label] for label in source.labels] == [source.key(i)[:3] for i in range(len(source))]
    held = {data.test.key(i) for i in range(len(data.test))}
    save(tmp_path / "ant/more.png")
    again = opened(tmp_path).test
    assert held <= {again.key(i) for i in range(len(again))}


def test_labels_none_ignores_class_folders(tmp_path):
    save(tmp_path / "cat/1.png")
    save(tmp_path / "dog/1.png")
    assert opened(tmp_path, labels="none").train.labels is None


def test_train_and_val_folders_are_the_splits(tmp_path):
    for name in ("train/9/a.png", "train/10/b.png", "train/10/c.png", "val/10/d.png", "test/9/e.png"):
        save(tmp_path / name)
    data = opened(tmp_path)
    assert data.train.classes == ["9", "10"]
    assert data.train.labels.tolist() == [1, 1, 0]  # in the order of the paths
    assert data.test.labels.tolist() == [1] and data.test.key(0) == "10/d.png"


def test_csv_gives_labels_and_files_without_one_have_minus_one(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\nsub/b.png,zebra\n./a.png,ant\n")
    source = folder.Folder(path=str(tmp_path), labels=str(tmp_path / "labels.csv"))
    assert source.classes == ["ant", "zebra"]
    assert source.labels.tolist() == [0, -1, 1]
    assert len(source.labelled()) == 2


def test_folder_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.full((12, 15, 16), 0.5, dtype=np.float32))
    np.save(tmp_path / "b.npy", np.full((15, 16, 12), 65535, dtype=np.uint16))
    np.save(tmp_path / "c.npy", np.array([None]), allow_pickle=True)
    source = opened(tmp_path, 12).train
    assert source.read(0).shape == source.read(1).shape == (12, 15, 16)
    assert (source.read(0).unique().tolist(), source.read(1).unique().tolist()) == ([128], [255])
    with pytest.raises(BadImage, match="the array cannot be read"):
        source.read(2)


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "real/a/x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/one").symlink_to(tmp_path / "real")
    (tmp_path / "set/two").symlink_to(tmp_path / "real/a")
    (tmp_path / "real/a/up").symlink_to(tmp_path / "real")
    (tmp_path / "set/self").symlink_to(tmp_path / "set/self")
    assert list_files(str(tmp_path / "set"), (".png",)) == ["one/a/x.png", "two/x.png"]


def test_paths_keep_odd_names():
    names = ["a.png", "sub/ü\n🦓.png", os.fsdecode(b"\xff.png"), ""]
    paths = Paths(names)
    assert [paths[i] for i in range(len(paths))] == names
