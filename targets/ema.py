"""What a moving average of the encoder sees. Source: data2vec (arXiv 2202.03555, section 3.3) and its code for images; CAE
(2202.03026, section 3.3), whose copy is the encoder of the step before and sees the hidden places alone.
"""

from copy import deepcopy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.types import Encoder, Head, Images, Mask, Target


class EMA(Target):
    """Features (B, L, D) of the full image from a copy of the encoder that follows it step by step.

    layers: how many of the last blocks give outputs, which are averaged; 0 takes the final output, after the norm.
    decay: share of the copy that stays at each step.
    decay_end: the decay at the end of the run, reached linearly; null keeps `decay`.
    layer_norm: whether each block's output is normalised over its width before the mean.
    hidden: whether the copy is fed the predicted places alone and gives features (B, P, D) of them, not of all places;
        the mask must have as many in every image.
    moves: whether the copy follows after each optimizer step, or before it and so is one step behind.
    train_mode: whether the copy's stochastic depth stays active in training.
    """

    normalizer, loss, moving = "layer_norm", "smooth_l1", True

    def __init__(
        self,
        *,
        encoder: Encoder,
        layers: Annotated[int, Ge(0)] = 6,
        decay: Annotated[float, Ge(0), Le(1)] = 0.9998,
        decay_end: Annotated[float, Ge(0), Le(1)] | None = None,
        layer_norm: bool = True,
        hidden: bool = False,
        moves: Literal["after", "before"] = "after",
        train_mode: bool = False,
    ):
        super().__init__()
        if encoder.out_grid != encoder.grid:
            out, grid = ("x".join(map(str, size)) for size in (encoder.out_grid, encoder.grid))
            raise UserError(f"target 'ema' needs a token for each place, the encoder gives {out} for {grid}")
        depth = encoder.num_layers
        if layers > depth:
            has = f"has {depth} blocks" if depth else "gives no outputs of its blocks: set target.layers=0"
            raise UserError(f"target.layers={layers} are to be averaged, but the encoder {has}")
        self.encoder = deepcopy(encoder)
        self.dim, self.layer_norm = encoder.embed_dim, layer_norm
        self.layers = tuple(range(depth - layers, depth))
        self.decay, self.decay_end = decay, decay if decay_end is None else decay_end
        self.reads = "mask" if hidden else "image"
        self.moves, self.train_mode = moves, train_mode

    def train(self, mode: bool = True) -> "EMA":
        """Stays in eval mode, unless the copy is to follow the encoder in this too."""
        super().train(mode)
        self.encoder.train(mode and self.train_mode)
        return self

    def forward(self, images: Images, mask: Mask | None = None) -> Float[Tensor, "B P D"]:
        """Raises UserError for a mask that differs in its number of predicted places between images."""
        if mask is not None:
            if mask.predicted_index is None:
                raise UserError("target.hidden=true needs as many predicted places in every image: take such a mask")
            mask = Mask(~mask.predicted, mask.predicted, mask.predicted_index, mask.grid)
        features = self.encoder(images, mask, self.layers)
        if not self.layers:
            return features.tokens
        outputs = [layer[:, features.num_prefix_tokens :].float() for layer in features.layers]
        if self.layer_norm:
            outputs = [F.layer_norm(output, (self.dim,)) for output in outputs]
        return torch.stack(outputs).mean(0)

    def before_step(self, encoder: Encoder, head: Head, progress: float) -> None:
        if self.moves == "before":
            self._follow(encoder, progress)

    def after_step(self, encoder: Encoder, head: Head, progress: float) -> None:
        if self.moves == "after":
            self._follow(encoder, progress)

    @torch.no_grad()
    def _follow(self, encoder: Encoder, progress: float) -> None:
        """copy = decay · copy + (1 - decay) · encoder, for every parameter and buffer; whole numbers are copied."""
        decay = self.decay + (self.decay_end - self.decay) * progress
        pairs = list(zip(_tensors(self.encoder), _tensors(encoder)))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([copy for copy, _ in floats], [now for _, now in floats], 1 - decay)
        for copy, now in pairs:
            if not copy.is_floating_point():
                copy.copy_(now)

    def restart(self, encoder: Encoder, head: Head) -> None:
        """The copy is the encoder as it is."""
        self.encoder.load_state_dict(encoder.state_dict())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
