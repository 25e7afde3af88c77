"""Sources: what people have, hostile files, wrong inputs."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile

from mimkit.data.files import Paths, list_files
from mimkit.data.kinds import kind_of
from mimkit.data.open import open_data
from mimkit.data.source import BadImage, Source, to_channels
from mimkit.data.sources import array, cifar10, folder, imagenet, parquet, stl10
from mimkit.data.sources.shapes import FORMS, Shapes
from mimkit.data.survey import survey
from mimkit.errors import UserError

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


# ---- folders


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


# ---- hostile files


HOSTILE = {
    "zero.jpg": (b"", "the file is empty"),
    "html.jpg": (b"<html>404</html>", "not an image"),
    "cut10.jpg": (encoded(Image.fromarray(COLOR), "JPEG")[:60], "cannot be read"),
    "cut50.jpg": (encoded(Image.fromarray(COLOR.repeat(9, 0)), "JPEG")[:-400], "truncated"),
    "cut99.jpg": (encoded(Image.fromarray(COLOR.repeat(9, 0)), "JPEG")[:-20], "truncated"),
    "cut.png": (encoded(Image.fromarray(COLOR), "PNG")[:-200], "cannot be read"),
    "bomb.jpg": (None, "more than"),
    "bomb.png": (None, "pixels|bomb"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unreadable_files_are_bad_images(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may do
    data, reason = HOSTILE[name]
    if data is None:
        data = bytearray(encoded(Image.fromarray(COLOR), "JPEG" if name.endswith("jpg") else "PNG"))
        at = data.index(b"\xff\xc0") + 5 if name.endswith("jpg") else 16
        data[at : at + 4] = b"\xff\xdc\xff\xdc"
        if name.endswith("png"):
            data[16:24] = b"\0\0\xff\xff\0\0\xff\xff"
            data[29:33] = __import__("zlib").crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadImage, match=reason) as error:
        folder.Folder(path=str(tmp_path)).read(0)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_with_images_names(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    save(tmp_path / "folder.jpg/inner.png")
    save(tmp_path / "line\nbreak.png")
    source = folder.Folder(path=str(tmp_path))
    assert [source.key(i) for i in range(3)] == ["folder.jpg/inner.png", "gone.jpg", "line\nbreak.png"]
    with pytest.raises(BadImage, match="cannot be read: No such file"):
        source.open(1)
    np.testing.assert_array_equal(as_array(source.read(2)), COLOR)


def picture(data: bytes, tmp_path: Path, in_chans: int | None, name: str = "x.png") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return as_array(folder.Folder(path=str(tmp_path / name)).read(0, in_chans))


def test_png_named_jpg_is_a_png(tmp_path):
    np.testing.assert_array_equal(picture(encoded(Image.fromarray(COLOR), "PNG"), tmp_path, 3, "x.jpg"), COLOR)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_modes_become_rgb_as_pillow_converts_them(tmp_path, mode):
    """Against Pillow's convert("RGB"), which torchvision's ImageFolder calls."""
    image = Image.fromarray(COLOR).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(picture(data, tmp_path, 3), expected)


def test_cmyk_jpeg_is_read_by_pillow(tmp_path):
    """Against Pillow."""
    data = encoded(Image.fromarray(COLOR).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(picture(data, tmp_path, 3), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_color_becomes_grey_by_pillows_luma(tmp_path):
    """Against Pillow's convert("L")."""
    expected = np.array(Image.fromarray(COLOR).convert("L"))
    np.testing.assert_array_equal(picture(encoded(Image.fromarray(COLOR), "PNG"), tmp_path, 1)[..., 0], expected)


def test_alpha_is_kept_or_laid_on_white(tmp_path):
    pixels = np.dstack([COLOR, np.zeros(COLOR.shape[:2], np.uint8)])
    pixels[0, 0, 3] = 255
    data = encoded(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(picture(data, tmp_path, 4), pixels)
    on_white = np.full_like(COLOR, 255)
    on_white[0, 0] = COLOR[0, 0]
    np.testing.assert_array_equal(picture(data, tmp_path, 3), on_white)
    grey = encoded(Image.fromarray(pixels).convert("LA"), "PNG")
    assert picture(grey, tmp_path, 2).shape == (13, 17, 2)
    assert (picture(grey, tmp_path, 3)[1:] == 255).all()
    palette = Image.fromarray(COLOR).convert("P")
    palette.info["transparency"] = int(np.array(palette)[0, 0])
    assert (picture(encoded(palette, "PNG"), tmp_path, 3)[0, 0] == 255).all()


def test_16_bit_grey_is_divided_by_257(tmp_path):
    values = np.array([[0, 257, 65535], [128, 129, 32896]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(picture(data, tmp_path, 1)[..., 0], [[0, 1, 255], [0, 1, 128]])
    source = folder.Folder(path=str(tmp_path / "x.png"), value_range=(0, 257))
    assert source.read(0).flatten().tolist() == [0, 255, 255, 127, 128, 255]


def test_float_images_outside_0_to_1_need_a_range(tmp_path):
    data = encoded(Image.fromarray(np.array([[-1.0, 3.0]], dtype=np.float32)), "TIFF")
    with pytest.raises(BadImage, match=r"data\.value_range"):
        picture(data, tmp_path, 1)
    assert folder.Folder(path=str(tmp_path), value_range=(-1, 3)).read(0).flatten().tolist() == [0, 255]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (5, 4), value) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(picture(data, tmp_path, 3)).tolist() == [10]


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert picture(encoded(Image.fromarray(COLOR), "JPEG", exif=exif), tmp_path, 3).shape == (13, 17, 3)


def test_one_pixel_is_an_image(tmp_path):
    assert picture(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), tmp_path, 3).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(("have", "want"), [(12, 3), (2, 3), (3, 12), (4, 1)])
def test_other_numbers_of_channels_are_refused(have, want):
    with pytest.raises(BadImage, match=rf"encoder\.in_chans={have} would fit"):
        to_channels(torch.zeros(have, 4, 5, dtype=torch.uint8), want)


# ---- parquet


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
