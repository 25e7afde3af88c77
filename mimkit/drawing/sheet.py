"""A sheet of pictures: one row per image, titled columns, a caption. Pixels are enlarged whole, never interpolated."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 168  # pixels of a tile's longer side, at least
GAP = 8  # pixels between tiles
LINE = 17  # pixels of a line of text
DPI = 100
FONT = 9  # points
LETTER = 7  # pixels that a letter of that size takes on average
ROWS = 8  # most images of a sheet


def draw_sheet(columns: Mapping[str, Float[Tensor, "B 3 H W"]], caption: str, path: Path) -> None:
    """Write images in [0, 1] as a PNG: a column per entry under its title (which may have several lines), of any length.

    Every pixel becomes a square of whole pixels, so that colours and edges are exact.
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
    sheet_height = GAP + head + rows * (height + GAP) + LINE * len(words) + GAP
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="white")
    for column, (title, images) in enumerate(columns.items()):
        left = GAP + column * pitch
        middle = (left + (pitch - GAP) / 2) / sheet_width
        figure.text(middle, 1 - (GAP + head - 4) / sheet_height, title, ha="center", va="bottom", fontsize=FONT)
        for row, image in enumerate(images.clamp(0, 1).mul(255).round().byte().cpu()):
            tile = image.permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
            bottom = sheet_height - GAP - head - row * (height + GAP) - height
            figure.figimage(tile.numpy(), left + (pitch - GAP - width) // 2, bottom, origin="upper")
    figure.text(GAP / sheet_width, GAP / sheet_height, "\n".join(words), va="bottom", fontsize=FONT, color="0.25")
    save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG under `path` at once, so that whoever looks meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
