"""What is hidden, what is predicted, what the encoder is fed: one type for all methods; True is hidden."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mimkit.errors import UserError
from mimkit.geometry import Size


@dataclass(frozen=True)
class Mask:
    """Three roles over the L places of the patch grid, in raster order, never counting class tokens.

    hidden: (B, L), True where the image is hidden from the encoder.
    predicted: (B, L), True where the loss counts.
    fed: (B, V), the places that the encoder is fed, in their order; None: all of them.
    grid: rows and columns, L = rows x columns.
    predicted_index: (B, P), the predicted places in raster order; None where their number differs between images.
    """

    hidden: Bool[Tensor, "B L"]
    predicted: Bool[Tensor, "B L"]
    fed: Int[Tensor, "B V"] | None = None
    grid: Size | None = None
    predicted_index: Int[Tensor, "B P"] | None = None

    @classmethod
    def from_hidden(
        cls,
        hidden: Bool[Tensor, "B L"],
        predicted: Bool[Tensor, "B L"] | None = None,
        fed: Int[Tensor, "B V"] | None = None,
        grid: Size | None = None,
    ) -> "Mask":
        """A mask from what is hidden; the loss counts there unless `predicted` says otherwise.

        Raises UserError where shapes or indices do not fit `hidden`.
        """
        predicted = hidden if predicted is None else predicted
        if hidden.dtype != torch.bool or predicted.dtype != torch.bool or hidden.ndim != 2:
            raise UserError(f"a mask needs boolean tensors (B, L), got {hidden.dtype} of shape {tuple(hidden.shape)}")
        if predicted.shape != hidden.shape:
            raise UserError(f"predicted {tuple(predicted.shape)} and hidden {tuple(hidden.shape)} differ in shape")
        if fed is not None and not fed.numel():
            raise UserError("fed holds no place: the encoder needs at least one")
        if fed is not None and (
            fed.shape[0] != hidden.shape[0] or int(fed.min()) < 0 or int(fed.max()) >= hidden.shape[1]
        ):
            raise UserError(f"fed holds places outside 0..{hidden.shape[1] - 1}, or another number of images")
        return cls(hidden, predicted, fed, grid, predicted_index=equal_indices(predicted))

    def feed_visible(self) -> "Mask":
        """The same mask with `fed` = the visible places in raster order.

        Raises UserError where the images differ in their number of visible places.
        """
        visible = equal_indices(~self.hidden)
        if visible is None:
            raise UserError("feed 'visible' needs the same number of visible places in every image; use mask.feed=all")
        return replace(self, fed=visible)

    def on_grid(self, grid: Size, batch: int) -> "Mask":
        """The same mask, known to lie on the encoder's `grid`.

        Raises UserError where its places or images are not as many.
        """
        if self.hidden.shape != (batch, grid[0] * grid[1]):
            raise UserError(
                f"the mask is {tuple(self.hidden.shape)}; {batch} images on the encoder's grid {grid[0]}x{grid[1]} "
                f"need ({batch}, {grid[0] * grid[1]})"
            )
        return replace(self, grid=grid)

    def to(self, device: torch.device) -> "Mask":
        """The same mask on a device."""
        if self.hidden.device == device:
            return self
        tensors = (self.hidden, self.predicted, self.fed, self.predicted_index)
        hidden, predicted, fed, index = (t if t is None else t.to(device, non_blocking=True) for t in tensors)
        assert hidden is not None and predicted is not None
        return Mask(hidden, predicted, fed, self.grid, index)

    def select(self, values: Shaped[Tensor, "B L *rest"]) -> Shaped[Tensor, "..."]:
        """`values` at the predicted places: (B, P, …), or (P_total, …) where their number differs between images."""
        if self.predicted_index is None:
            return values[self.predicted]
        return gather_places(values, self.predicted_index)


def equal_indices(chosen: Bool[Tensor, "B L"]) -> Int[Tensor, "B P"] | None:
    """Places of the True entries per row (B, P) in raster order, or None where rows differ in their number."""
    counts = chosen.sum(1)
    if bool((counts != counts[0]).any()):
        return None
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def gather_places(values: Shaped[Tensor, "B L *rest"], index: Int[Tensor, "B P"]) -> Shaped[Tensor, "B P *rest"]:
    """`values` at `index` along the second axis."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
