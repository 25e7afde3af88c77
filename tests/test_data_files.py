"""Single files: hostile ones, modes, depths, channels."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mimkit.data.source import BadImage, to_channels
from mimkit.data.sources import folder
from tests.images import COLOR, as_array, encoded, save

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
