"""A sheet of pictures: one row per image, titled columns, a caption. Pixels are enlarged whole, never interpolated."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mimkit.drawing.colours import Colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 168  # pixels of a tile's longer side, at least
GAP = 8  # pixels between tiles
LINE = 17  # pixels of a line of text
DPI = 100
FONT = 9  # points
LETTER = 7  # pixels that a letter of that size takes on average
ROWS = 8  # most images of a sheet


def draw_sheet(
    columns: Mapping[str, Float[Tensor, "B 3 H W"]],
    caption: str,
    path: Path,
    legend: Mapping[str, Colour] | None = None,
) -> None:
    """Write images in [0, 1] as a PNG: a column per entry under its title (which may have several lines), of any length.

    Every pixel becomes a square of whole pixels, so that colours and edges are exact.
    legend: what colours mean, below the images.
    """
    from matplotlib.figure import Figure

    first = next(iter(columns.values()))
    rows, (height, width) = max(map(len, columns.values())), first.shape[2:]
    scale = math.ceil(TILE / max(height, width))
    height, width = height * scale, width * scale
    pitch = max(width, TILE) + GAP
    sheet_width = pitch * len(columns) + GAP
    head = LINE * max(title.count("\n") + 1 for title in columns) + GAP
    words = textwrap.wrap(caption, (sheet_width - 2 * GAP) // LETTER)
    entries = dict(legend or {})
    per_line = max(1, (sheet_width - 2 * GAP) // _entry_width(entries))
    legend_height = LINE * math.ceil(len(entries) / per_line)
    sheet_height = GAP + head + rows * (height + GAP) + legend_height + LINE * len(words) + GAP
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="white")
    for column, (title, images) in enumerate(columns.items()):
        left = GAP + column * pitch
        middle = (left + (pitch - GAP) / 2) / sheet_width
        figure.text(middle, 1 - (GAP + head - 4) / sheet_height, title, ha="center", va="bottom", fontsize=FONT)
        for row, image in enumerate(images.clamp(0, 1).mul(255).round().byte().cpu()):
            tile = image.permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
            bottom = sheet_height - GAP - head - row * (height + GAP) - height
            figure.figimage(tile.numpy(), left + (pitch - GAP - width) // 2, bottom, origin="upper")
    top = sheet_height - GAP - head - rows * (height + GAP)
    for number, (text, colour) in enumerate(entries.items()):
        left = GAP + number % per_line * _entry_width(entries)
        _draw_entry(figure, left, top - LINE * (number // per_line + 1), text, colour)
    figure.text(GAP / sheet_width, GAP / sheet_height, "\n".join(words), va="bottom", fontsize=FONT, color="0.25")
    save(figure, path)


def _entry_width(legend: Mapping[str, Colour]) -> int:
    """Pixels of the widest entry: its colour, its text, and a gap."""
    return LINE + 2 * GAP + LETTER * max(map(len, legend), default=0)


def _draw_entry(figure: "Figure", left: int, bottom: int, text: str, colour: Colour) -> None:
    """A square of the colour in a thin frame, and what it means."""
    width, height = figure.get_size_inches() * DPI
    square = np.full((LINE - 4, LINE - 4, 3), 0.4)
    square[1:-1, 1:-1] = colour
    figure.figimage(square, left, bottom + 2)
    figure.text((left + LINE) / width, (bottom + 4) / height, text, va="bottom", fontsize=FONT)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG under `path` at once, so that whoever looks meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
