"""The embedded data set: drawn shapes on textured ground, labelled by their form. It needs no download.

Colours, textures, position, size and rotation vary and say nothing about the label. Per pixel only operations that
IEEE 754 rounds exactly are used, so an image has the same bits whether it is drawn alone or among others.
"""

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mimkit.data.draws import Stream, uniforms
from mimkit.data.source import MEMORY_LIMIT, SMALL_IMAGE, Picture, Pixels, Size, Source, to_channels
from mimkit.data.sources._forms import FORMS
from mimkit.errors import UserError

CHUNK = 1 << 18  # pixels that are drawn at once: what the caches hold
Plane = Float[Tensor, "n H W"]


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
        return Pixels(self._draw(range(index, index + 1))[0])

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
        images = torch.cat([self._draw(rows) for rows in chunks])
        return images if in_chans is None else to_channels(images, in_chans)

    def _draw(self, rows: range) -> UInt8[Tensor, "n C H W"]:
        draws = torch.from_numpy(uniforms(self.seed, 0, self.stream, rows, self.width)).float()
        form = torch.from_numpy(self.form[rows.start : rows.stop])
        height, width = self.size
        y, x = torch.arange(height)[None, :, None] + 0.5, torch.arange(width)[None, None, :] + 0.5  # pixel centres
        short = min(height, width)
        u = draws[:, :, None, None]  # (n, draws, 1, 1)
        radius = short * (0.27 + 0.17 * u[:, 1])
        center_x, center_y = radius + u[:, 2] * (width - 2 * radius), radius + u[:, 3] * (height - 2 * radius)
        across, down = rotate((x - center_x) / radius, (y - center_y) / radius, u[:, 4], u[:, 5])
        inside = (0.5 - each(list(FORMS.values()), form, across, down) * radius).clamp_(0, 1)[:, None]  # (n, 1, H, W)
        ground, figure = (texture(x, y, short, u[:, at : at + 7]) for at in (6, 13))
        hue, shift, ground_swing, figure_swing = u[:, 20:].chunk(4, dim=1)  # (n, C, 1, 1)
        other = hue + 0.4 + 0.2 * shift
        other -= other.floor()  # differs from `hue` by 0.4 at least, in every channel
        behind = hue + (0.3 * ground_swing - 0.15) * ground[:, None]
        front = other + (0.3 * figure_swing - 0.15) * figure[:, None]
        return ((behind + (front - behind) * inside).clamp_(0, 1) * 255).round_().to(torch.uint8)


def each(functions: Sequence[Callable[..., Plane]], choice: Int[Tensor, " n"], *values: Tensor) -> Plane:
    """The chosen function of each image's values."""
    out = torch.empty(torch.broadcast_shapes(*(value.shape for value in values)))
    for number, function in enumerate(functions):
        rows = (choice == number).nonzero()[:, 0]
        if len(rows):
            out[rows] = function(*(value[rows] for value in values))
    return out


def rotate(x: Tensor, y: Tensor, angle: Tensor, quarter: Tensor) -> tuple[Plane, Plane]:
    """Coordinates turned by a random angle: (1 - t², 2t) / (1 + t²) for t in [-0.41, 0.41], then a quarter turn."""
    t = angle * 0.8284 - 0.4142
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    turn = (quarter * 4).floor()
    cos, sin = (
        torch.where(turn == 0, cos, torch.where(turn == 1, -sin, torch.where(turn == 2, -cos, sin))),
        torch.where(turn == 0, sin, torch.where(turn == 1, cos, torch.where(turn == 2, -sin, -cos))),
    )
    return x * cos + y * sin, y * cos - x * sin


def texture(x: Tensor, y: Tensor, short: int, u: Float[Tensor, "n 7 1 1"]) -> Plane:
    """A pattern in [-1, 1] over the pixels, of random kind, wavelength, phase and direction."""
    length = short * (0.12 + 0.18 * u[:, 1])
    across, down = rotate(x / length, y / length, u[:, 2], u[:, 3])
    across, down = across + u[:, 4], down + u[:, 5]
    return each(list(TEXTURES.values()), (u[:, 0, 0, 0] * len(TEXTURES)).long(), across, down, u[:, 6].expand_as(down))


def triangle_wave(x: Tensor) -> Tensor:
    """Between -1 and 1 with period 1."""
    return (x - x.floor() - 0.5).abs() * 4 - 1


def stripes(x: Plane, y: Plane, key: Plane) -> Plane:
    """Stripes with soft edges."""
    return (triangle_wave(x) * 2).clamp(-1, 1)


def noise(x: Plane, y: Plane, key: Plane) -> Plane:
    """An own value for each cell of a third of a wavelength."""
    hashed = (x * 3).floor().long() * 374761393 + (y * 3).floor().long() * 668265263 + (key * (1 << 24)).long()
    hashed = ((hashed ^ (hashed >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((hashed ^ (hashed >> 16)) & 0xFFFF).float() * (2 / 65535) - 1


TEXTURES: dict[str, Callable[[Plane, Plane, Plane], Plane]] = {
    "flat": lambda x, y, key: torch.zeros_like(x),
    "gradient": lambda x, y, key: triangle_wave(x * 0.12),
    "stripes": stripes,
    "checker": lambda x, y, key: stripes(x, y, key) * stripes(y, x, key),
    "noise": noise,
}
