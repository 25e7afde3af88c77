"""The embedded data set: light shapes on dark textured ground, labelled by their form. It needs no download.

Colours, textures, position, size and rotation vary and say nothing about the label. Per pixel only operations that
IEEE 754 rounds exactly are used, so an image has the same bits whether it is drawn alone or among others.
"""

# mypy: disable-error-code="no-any-return"

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from mimkit.data.draws import Stream, uniforms
from mimkit.data.source import MEMORY_LIMIT, SMALL_IMAGE, Picture, Pixels, Size, Source, to_channels
from mimkit.data.sources._forms import FORMS
from mimkit.errors import UserError

CHUNK = 1 << 17  # pixels that are drawn at once: what the caches hold
Plane = Float32[np.ndarray, "n H W"]
Grid = Float32[np.ndarray, "1 H W"]
PerImage = Float32[np.ndarray, "n 1 1"]


class Shapes(Source):
    """Drawn shapes: the label is the form.

    num_images: training images.
    num_test: test images, drawn from a stream of their own.
    image_size: height and width in pixels.
    in_chans: channels.
    seed: another seed, other images.
    """

    def __init__(
        self,
        *,
        num_images: int = 10000,
        num_test: int = 2000,
        image_size: Size = (32, 32),
        in_chans: int = 3,
        seed: int = 0,
    ):
        if min(num_images, num_test, *image_size, in_chans) < 1:
            raise UserError("shapes: num_images, num_test, image_size and in_chans must be at least 1")
        self.num_test, self.size, self.seed = num_test, image_size, seed
        self.channels, self.width = in_chans, 20 + 4 * in_chans  # width: draws per image
        self._set(num_images, Stream.SHAPES_TRAIN)

    def _set(self, num_images: int, stream: Stream) -> None:
        self.num_images, self.stream = num_images, stream
        draws = uniforms(self.seed, 0, stream, range(num_images), self.width)
        self.form = (draws[:, 0] * len(FORMS)).astype(np.int64)
        super().__init__("shapes", self.form, list(FORMS), self.channels)

    def __len__(self) -> int:
        return self.num_images

    def open(self, index: int) -> Picture:
        """See Source."""
        return Pixels(torch.from_numpy(self._draw(range(index, index + 1))[0]))

    def test(self) -> "Shapes | None":
        """Images of the test stream."""
        if self.stream == Stream.SHAPES_TEST:
            return None
        test = copy(self)
        test._set(self.num_test, Stream.SHAPES_TEST)
        return test

    def _decode_all(self, in_chans: int | None) -> UInt8[Tensor, "N C H W"] | None:
        height, width = self.size
        if height * width > SMALL_IMAGE or len(self) * self.channels * height * width > MEMORY_LIMIT:
            return None
        step = max(1, CHUNK // (height * width))
        chunks = [range(start, min(start + step, len(self))) for start in range(0, len(self), step)]
        images = torch.from_numpy(np.concatenate([self._draw(rows) for rows in chunks]))
        return images if in_chans is None else to_channels(images, in_chans)

    def _draw(self, rows: range) -> UInt8[np.ndarray, "n C H W"]:
        draws = uniforms(self.seed, 0, self.stream, rows, self.width).astype(np.float32)
        u = draws[:, :, None, None]  # (n, draws, 1, 1)
        height, width = self.size
        y, x = np.mgrid[:height, :width].astype(np.float32)[:, None] + np.float32(0.5)  # (1, H, W), pixel centres
        short = min(height, width)
        radius = short * (0.3 + 0.16 * u[:, 1])
        center_x, center_y = radius + u[:, 2] * (width - 2 * radius), radius + u[:, 3] * (height - 2 * radius)
        across, down = rotate((x - center_x) / radius, (y - center_y) / radius, 0.36 * u[:, 4] - 0.18)  # 20 degrees
        outline = each(list(FORMS.values()), self.form[rows.start : rows.stop], across, down) * radius  # in pixels
        inside = np.clip(0.5 - outline, 0, 1)[:, None]  # (n, 1, H, W)
        ground, figure = (texture(x, y, short, u[:, at : at + 6])[:, None] for at in (5, 11))
        dark, light, ground_swing, figure_swing = np.split(u[:, 20:], 4, axis=1)  # (n, C, 1, 1)
        image = 0.12 + 0.3 * dark + (0.16 * ground_swing - 0.08) * ground
        image += (0.6 + 0.3 * light + (0.16 * figure_swing - 0.08) * figure - image) * inside
        return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def each(
    functions: Sequence[Callable[..., Plane]], choice: Int64[np.ndarray, " n"], *values: Plane | PerImage
) -> Plane:
    """The chosen function of each image's values."""
    out = np.empty_like(values[0])
    for number, function in enumerate(functions):
        rows = np.flatnonzero(choice == number)
        if len(rows):
            out[rows] = function(*(value[rows] for value in values))
    return out


def rotate(x: Plane, y: Plane, t: PerImage) -> tuple[Plane, Plane]:
    """Coordinates turned by an angle whose half has the tangent `t`."""
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return x * cos + y * sin, y * cos - x * sin


def texture(x: Grid, y: Grid, short: int, u: Float32[np.ndarray, "n 6 1 1"]) -> Plane:
    """A pattern in [-1, 1] over the pixels, of random kind, wavelength, direction and phase."""
    length = short * (0.12 + 0.18 * u[:, 1])
    across, down = rotate(x / length, y / length, 2 * u[:, 2] - 1)
    kind = (u[:, 0, 0, 0] * len(TEXTURES)).astype(np.int64)
    return each(TEXTURES, kind, across + u[:, 3], down + u[:, 4], u[:, 5])


def triangle_wave(x: Plane) -> Plane:
    """Between -1 and 1 with period 1."""
    return np.abs(x - np.floor(x) - 0.5) * 4 - 1


def flat(x: Plane, y: Plane, key: PerImage) -> Plane:
    """Nothing."""
    return np.zeros_like(x)


def gradient(x: Plane, y: Plane, key: PerImage) -> Plane:
    """A wave so long that hardly more than a slope is seen."""
    return triangle_wave(x * 0.12)


def stripes(x: Plane, y: Plane, key: PerImage) -> Plane:
    """Stripes with soft edges."""
    return np.clip(triangle_wave(x) * 2, -1, 1)


def checker(x: Plane, y: Plane, key: PerImage) -> Plane:
    """Stripes times stripes across them."""
    return stripes(x, y, key) * stripes(y, x, key)


def noise(x: Plane, y: Plane, key: PerImage) -> Plane:
    """An own value for each cell of a third of a wavelength."""
    column, row = np.floor(x * 3).astype(np.int64), np.floor(y * 3).astype(np.int64)
    hashed = column * 374761393 + row * 668265263 + (key * (1 << 24)).astype(np.int64)
    hashed = ((hashed ^ (hashed >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((hashed ^ (hashed >> 16)) & 0xFFFF).astype(np.float32) * np.float32(2 / 65535) - 1


TEXTURES = (flat, flat, flat, gradient, stripes, checker, noise)  # flat more often, so that outlines stand out
