"""Images, true masks and predicted ones side by side, with a legend of the classes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mimkit.drawing.colours import class_colours, rgb
from mimkit.drawing.sheet import draw_sheet
from mimkit.types import as_float


def draw_masks(
    images: UInt8[Tensor, "B C H W"],
    truth: UInt8[Tensor, "B H W"],
    predicted: Int[Tensor, "B H W"],
    ignore: int,
    legend: Sequence[str],
    caption: str,
    path: Path,
) -> None:
    """Write a PNG with a row for each image; pixels of the value `ignore` are black in the truth.

    legend: a text for each class; those of classes that the picture shows are written below it.
    """
    colours = class_colours(len(legend))
    black = len(legend)
    table = torch.tensor([*colours, (0.0, 0.0, 0.0)])
    indices = truth.long().masked_fill(truth == ignore, black)

    def painted(classes: Int[Tensor, "B H W"]) -> Float[Tensor, "B 3 H W"]:
        return table[classes].permute(0, 3, 1, 2)

    columns = {
        "image": rgb(as_float(images)),
        "truth" + ("\n(black: ignored)" if (indices == black).any() else ""): painted(indices),
        "prediction": painted(predicted),
    }
    shown = {*indices.unique().tolist(), *predicted.unique().tolist()} - {black}
    draw_sheet(columns, caption, path, {legend[number]: colours[number] for number in sorted(shown)})
