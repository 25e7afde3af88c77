"""What `mimkit generate` draws: images out of nothing, or a picture of which a part is painted anew."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.drawing.colours import GREY, rgb
from mimkit.drawing.sheet import draw_sheet
from mimkit.errors import UserError
from mimkit.evaluate.reconstruction import place_pixels
from mimkit.generate.painter import open_run
from mimkit.generate.regions import open_picture, region, view
from mimkit.generate.sampler import Sampling
from mimkit.types import as_float

ACROSS = 6  # samples of one picture side by side


def draw_samples(run: Path, output: Path, count: int, sampling: Sampling, seed: int) -> str:
    """Write a PNG of `count` images that a run paints out of nothing; gives a line that says so. Raises UserError."""
    painter, step = open_run(run)
    images = painter.images(painter.paint(*painter.blank(count), sampling, painter.generator(seed)))
    draw_sheet(_columns(images, math.ceil(math.sqrt(count))), _caption(run, step, sampling, seed), output)
    return f"{output}: {count} images painted by {run} at {step}"


def draw_painted(
    run: Path, output: Path, count: int, sampling: Sampling, seed: int, picture: Path | None, mask: str | None
) -> str:
    """Write a PNG of a picture and `count` versions of which the run has painted a part; gives a line that says so.

    Columns: the picture; what its codes decode to (they are what is kept); what is kept of it; the versions.
    Raises UserError.
    """
    if picture is None or mask is None:
        raise UserError("--from IMAGE and --mask MASK go together: a picture, and what of it is painted")
    opened = open_picture(picture)
    painter, step = open_run(run)
    encoder = painter.encoder
    places = region(mask, opened, encoder.image_size, encoder.grid)
    original = as_float(view(picture, opened, encoder.image_size, encoder.in_chans)[None]).to(painter.device)
    codes, unknown = painter.tokenizer.codes(original), places[None].to(painter.device)
    many = (codes.expand(count, -1), unknown.expand(count, -1))
    painted = painter.images(painter.paint(*many, sampling, painter.generator(seed)))
    hidden = place_pixels(unknown[..., None], encoder.grid, original)
    columns = {
        "original": rgb(original),
        "its codes,\ndecoded": rgb(painter.images(codes)),
        "what is kept": torch.where(hidden, GREY, rgb(original)),
    }
    draw_sheet(columns | _columns(painted, ACROSS), _caption(run, step, sampling, seed), output)
    return f"{output}: {picture} with {int(places.sum())} of {len(places)} places painted by {run} at {step}"


def _columns(images: Float[Tensor, "B C H W"], across: int) -> dict[str, Float[Tensor, "n 3 H W"]]:
    """Images under each other in at most `across` columns, whose titles number them."""
    rows = math.ceil(len(images) / across)
    parts = dict(zip(range(1, len(images) + 1, rows), rgb(images).split(rows)))
    return {
        f"{first}" if len(part) == 1 else f"{first} to {first + len(part) - 1}": part for first, part in parts.items()
    }


def _caption(run: Path, step: str, sampling: Sampling, seed: int) -> str:
    return f"{run} at {step} | {sampling.steps} steps, temperature {sampling.temperature:g}, seed {seed}"
