"""Bytes of an image file to uint8 pixels: JPEGs by simplejpeg, scaled where a smaller image suffices; others by Pillow.

What stands in a file becomes pixels by these rules:
- EXIF orientation is not applied (as torchvision's ImageFolder), an animation gives its first frame.
- CMYK, palette and other colour spaces become RGB, 1-bit becomes grey 0 and 255.
- Alpha is kept where the encoder reads that many channels; else the image is laid on white.
- 16-bit grey is divided by 257, float grey in [0, 1] multiplied by 255, unless a range of values is given.
- A file cut short, or with more than `MAX_PIXELS` in its header, is a BadImage, never a grey picture.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mimkit.data.arrays import ValueRange, to_uint8
from mimkit.data.source import BadImage, Picture, Size, to_channels

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
PLAIN_MODES = {"1": "L", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB", "PA": "RGBA"}
PLAIN_MODES |= {"La": "LA", "RGBa": "RGBA"}


class EncodedPicture(Picture):
    """An image file's bytes.

    value_range: what becomes 0 and 255 in 16-bit and float images.
    Raises BadImage where the header is not an image's, or tells of too many pixels.
    """

    def __init__(self, data: bytes, value_range: ValueRange | None = None):
        import simplejpeg

        self.data, self.value_range = data, value_range
        self.jpeg_mode: str | None = None
        if not data:
            raise BadImage("the file is empty")
        if data[:2] == b"\xff\xd8":
            try:
                height, width, space, _ = simplejpeg.decode_jpeg_header(data)
                self.jpeg_mode = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}.get(space)
            except ValueError:
                pass  # Pillow decides
        if self.jpeg_mode is None:
            image = open_image(data)
            width, height = image.size
        self.mode = image.mode if self.jpeg_mode is None else self.jpeg_mode.replace("GRAY", "L")
        if width * height > MAX_PIXELS:
            raise BadImage(f"{width}x{height} pixels are more than {MAX_PIXELS}")
        self.size = (height, width)

    def pixels(self, in_chans: int | None = None, min_size: Size | None = None) -> UInt8[Tensor, "C h w"]:
        """See Picture. JPEGs are decoded at the smallest of 1/8, 2/8, 3/8 and 4/8 that gives `min_size`."""
        image = self._from_jpeg(min_size) if self.jpeg_mode else None
        if image is None:
            image = from_pillow(open_image(self.data), in_chans, self.value_range)
        return image if in_chans is None else to_channels(image, in_chans)

    def _from_jpeg(self, min_size: Size | None) -> UInt8[Tensor, "C h w"] | None:
        import simplejpeg

        shrinks = min_size is not None and min_size[0] * 2 <= self.size[0] + 1 and min_size[1] * 2 <= self.size[1] + 1
        scale = {"min_height": min_size[0], "min_width": min_size[1], "min_factor": 2} if shrinks and min_size else {}
        try:
            pixels = simplejpeg.decode_jpeg(self.data, self.jpeg_mode, **scale)
        except ValueError:
            return None  # Pillow decides whether the fault is a trifle or the file is cut
        return torch.from_numpy(pixels).permute(2, 0, 1)


def open_image(data: bytes) -> "Image.Image":
    """The file opened by Pillow, pixels not yet decoded. Raises BadImage."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("it is not an image in a known format") from None
    except Exception as error:  # Pillow's plugins raise whatever a broken header leads them to
        raise BadImage(f"its header cannot be read ({one_line(error)})") from None


def from_pillow(image: "Image.Image", in_chans: int | None, value_range: ValueRange | None) -> UInt8[Tensor, "C h w"]:
    """Decoded pixels by the rules above. Raises BadImage."""
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a global that any library may have switched on
    try:
        image.load()
        mode = ("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else PLAIN_MODES.get(image.mode)
        plain = image.convert(mode) if mode else image
        if plain.mode in ("LA", "RGBA") and in_chans not in (None, len(plain.mode)):
            plain = on_white(plain)
    except Exception as error:  # as above; a broken file must never stop a run
        raise BadImage(f"its pixels cannot be read ({one_line(error)})") from None
    pixels = np.array(plain)
    if plain.mode.startswith(("I", "F")):
        pixels = to_uint8(pixels, value_range or ((0, 65535) if plain.mode.startswith("I") else None))
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def on_white(image: "Image.Image") -> "Image.Image":
    """An LA or RGBA image laid on white."""
    from PIL import Image

    white = Image.new(image.mode, image.size, (255,) * len(image.mode))
    color = image.convert("RGBA")
    return Image.alpha_composite(white.convert("RGBA"), color).convert("L" if image.mode == "LA" else "RGB")


def one_line(error: Exception) -> str:
    """The error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
