"""What a moving average of the encoder sees. Source: data2vec (arXiv 2202.03555, section 3.3) and its code for images."""

from copy import deepcopy
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.types import Encoder, Head, Images, Target


class EMA(Target):
    """Features (B, L, D) of the full image from a copy of the encoder that follows it after each step.

    layers: how many of the last blocks give outputs, which are averaged; 0 takes the final output, after the norm.
    decay: share of the copy that stays at each step.
    decay_end: the decay at the end of the run, reached linearly; null keeps `decay`.
    layer_norm: whether each block's output is normalised over its width before the mean.
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

    def forward(self, images: Images) -> Float[Tensor, "B L D"]:
        features = self.encoder(images, layers=self.layers)
        if not self.layers:
            return features.tokens
        outputs = [layer[:, features.num_prefix_tokens :].float() for layer in features.layers]
        if self.layer_norm:
            outputs = [F.layer_norm(output, (self.dim,)) for output in outputs]
        return torch.stack(outputs).mean(0)

    @torch.no_grad()
    def after_step(self, encoder: Encoder, head: Head, progress: float) -> None:
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
