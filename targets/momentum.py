"""What a moving copy of encoder and projector makes of another view. Source: CMAE (arXiv 2207.13532, section 3.2)."""

from copy import deepcopy
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from mimkit.errors import UserError
from mimkit.types import Encoder, Head, Images, Target, Wanted


class Momentum(Target):
    """One vector per image: the mean patch token after the last block, before the final norm, through the projector.

    The projector is a copy of the head's and, like the encoder's copy, follows parameter by parameter; its batch norm
    counts with the batch at hand, as in the authors' code.

    view: the view that it reads, one of data.views.
    decay: share of the copy that stays at each step.
    dim: width of the vectors.
    """

    normalizer, loss, moving = "l2", "info_nce", True

    def __init__(
        self,
        *,
        encoder: Encoder,
        view: str = "shifted",
        decay: Annotated[float, Ge(0), Le(1)] = 0.996,
        dim: Annotated[int, Gt(0)] = 256,
    ):
        super().__init__()
        if not encoder.num_layers:
            raise UserError("target 'momentum' reads the last block's output, which this encoder does not give")
        self.view, self.decay, self.dim = view, decay, dim
        self.encoder, self.projector = deepcopy(encoder), nn.Identity()

    def train(self, mode: bool = True) -> "Momentum":
        """The encoder's copy stays in eval mode."""
        super().train(mode)
        self.projector.train(mode)
        return self

    def forward(self, images: Images) -> Wanted:
        features = self.encoder(images, layers=(self.encoder.num_layers - 1,))
        return Wanted(None, cls=self.projector(features.layers[0][:, features.num_prefix_tokens :].mean(1)))

    @torch.no_grad()
    def after_step(self, encoder: Encoder, head: Head, progress: float) -> None:
        """copy = decay · copy + (1 - decay) · now, for every parameter; buffers stay the copy's own."""
        for copy, now in ((self.encoder, encoder), (self.projector, head.projector)):
            torch._foreach_lerp_(list(copy.parameters()), list(now.parameters()), 1 - self.decay)

    def restart(self, encoder: Encoder, head: Head) -> None:
        """The copies are encoder and projector as they are. Raises UserError where the head has no projector."""
        if not isinstance(getattr(head, "projector", None), nn.Module):
            raise UserError("target 'momentum' copies the head's projector: take head=feature_decoder")
        self.encoder.load_state_dict(encoder.state_dict())
        self.projector = deepcopy(head.projector)
