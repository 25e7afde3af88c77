"""Values as colours: images of any number of channels, features by their principal components, maps of one number."""

from collections.abc import Callable
from colorsys import hsv_to_rgb

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Colour = tuple[float, float, float]
Colours = Float[Tensor, "*places 3"]

# Of classes; far apart, and from black, also to colour-blind readers (in Lab, as those with two kinds of cones see them).
CLASSES = (
    *("56a6fa", "861857", "8f9790", "6233bd", "eaa0d8", "158d28"),
    *("efe341", "7c493b", "df1717", "ffffff", "2c458c", "66dd9f"),
)
GOLDEN = 0.618034  # of the circle of hues: steps of this length spread evenly, however many there are
GREY = 0.5  # of what is hidden or not predicted
RIGHT, WRONG = (0.13, 0.40, 0.67), (0.94, 0.54, 0.20)  # blue and orange: told apart by colour-blind readers too
QUANTILES = (0.02, 0.98)  # of a component's values that become 0 and 1


def rgb(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images of one channel as grey, of two with an empty third, of more by their first three."""
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    return torch.cat([images[:, :3], torch.zeros_like(images[:, :1])], dim=1)[:, :3]


def shown_channels(channels: int) -> str:
    """A word for captions on what `rgb` leaves out, or nothing."""
    return f" | colours: channels 1-{min(3, channels)} of {channels}" if channels not in (1, 3) else ""


def fit_components(values: Float[Tensor, "N D"]) -> Callable[[Float[Tensor, "*places D"]], Colours]:
    """The projection of features on the first three principal components of `values`, as colours in [0, 1].

    The 2nd and 98th percentile of each component become 0 and 1; its sign makes the largest weight positive, so that
    colours do not flip for no reason. Features of less than three dimensions leave the other colours grey.
    """
    mean = values.mean(0)
    axes = torch.linalg.svd(values - mean, full_matrices=False).Vh[:3]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()
    low, high = torch.quantile((values - mean) @ axes.T, torch.tensor(QUANTILES, device=values.device), dim=0)

    def project(features: Float[Tensor, "*places D"]) -> Colours:
        scaled = (((features - mean) @ axes.T - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        blank = scaled.new_full((*scaled.shape[:-1], 3 - len(axes)), GREY)
        return torch.cat([scaled, blank], dim=-1)

    return project


def class_colours(count: int) -> list[Colour]:
    """A colour for each of `count` classes, none of them black; from the 13th on hues only keep them apart."""
    fixed = [(red / 255, green / 255, blue / 255) for red, green, blue in map(bytes.fromhex, CLASSES)]
    return fixed[:count] + [
        hsv_to_rgb(number * GOLDEN % 1, (0.9, 0.5)[number % 2], (0.95, 0.7, 0.5)[number % 3])
        for number in range(len(fixed), count)
    ]


def heat(values: Float[Tensor, "B L"], most: Float[Tensor, "B 1"] | float) -> Float[Tensor, "B L 3"]:
    """0 … `most` as colours from black to bright yellow."""
    from matplotlib import colormaps

    colours = colormaps["inferno"]((values / most).clamp(0, 1).cpu().numpy())
    return torch.from_numpy(colours[..., :3]).to(values)


def right_or_wrong(right: Bool[Tensor, "B L"]) -> Float[Tensor, "B L 3"]:
    """Blue where right, orange where wrong."""
    colours = torch.tensor([WRONG, RIGHT], device=right.device)
    return colours[right.long()]
