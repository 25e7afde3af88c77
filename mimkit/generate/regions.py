"""What of a picture is to be painted: by a word, or by the white pixels of another picture."""

from collections.abc import Callable
from pathlib import Path

import torch
from einops import reduce
from jaxtyping import Bool, UInt8
from torch import Tensor

from mimkit.data.crops import center_box, render
from mimkit.data.decode import EncodedPicture
from mimkit.data.source import BadImage
from mimkit.errors import UserError
from mimkit.types import Size

WHITE = 128  # from this grey value on a pixel is to be painted

# By a place's row and column as shares of the image, at its middle.
WORDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "center": lambda y, x: _in_the_middle(y) & _in_the_middle(x),
    "border": lambda y, x: ~(_in_the_middle(y) & _in_the_middle(x)),
    "left": lambda y, x: x < 0.5,
    "right": lambda y, x: x > 0.5,
    "top": lambda y, x: y < 0.5,
    "bottom": lambda y, x: y > 0.5,
}


def open_picture(path: Path) -> EncodedPicture:
    """A picture's file. Raises UserError where there is none or it is no picture."""
    try:
        return EncodedPicture(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error


def view(path: Path, picture: EncodedPicture, size: Size, in_chans: int) -> UInt8[Tensor, "C h w"]:
    """The picture as probes see it: resized so that it just covers `size`, and cut at the centre. Raises UserError."""
    try:
        return render(picture, center_box(picture.size, size), False, size, in_chans)
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error


def region(mask: str, picture: EncodedPicture, size: Size, grid: Size) -> Bool[Tensor, " L"]:
    """The places of the picture's view that are to be painted: a word's, or those with a white pixel of a mask's file.

    Raises UserError for what is neither, for a mask of another size than the picture, and where nothing is to be painted.
    """
    if mask in WORDS:
        rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
        return WORDS[mask](rows[:, None], columns[None, :]).expand(grid).flatten()
    path = Path(mask)
    if not path.exists():
        raise UserError(f"--mask {mask}: no such file, nor one of the words {', '.join(WORDS)}")
    drawn = open_picture(path)
    if drawn.size != picture.size:
        theirs, ours = ("x".join(map(str, each.size)) for each in (drawn, picture))
        raise UserError(f"--mask {mask} is {theirs} pixels, the picture is {ours}: a mask has the picture's size")
    white = view(path, drawn, size, 1)[0] >= WHITE
    places = reduce(white, "(h p) (w q) -> (h w)", "max", h=grid[0], w=grid[1])
    if not places.any():
        raise UserError(f"--mask {mask} leaves nothing to paint: white pixels ({WHITE} or more of 255) are painted")
    return places


def _in_the_middle(share: Tensor) -> Tensor:
    return (share > 0.25) & (share < 0.75)
