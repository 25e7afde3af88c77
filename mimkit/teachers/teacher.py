"""Frozen models as targets: what a teacher reads, where it computes, where its attention goes.

Its resolution is the encoder's grid times its own patch size, so that its features lie on the encoder's places: nothing
but the image is resized (MaskDistill, arXiv 2210.10615; EVA, arXiv 2211.07636).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.teachers.cache import Cache, parts
from mimkit.types import Images, Size, Standardize, Target, Wanted, as_float


class Teacher(Target):
    """A frozen model as a target. A subclass builds the model and writes `encode`.

    in_chans: channels of the images; one is repeated, other numbers than the model's are refused.
    input_size: rows and columns that the model reads; images of another size are resized (bicubic, antialiased).
    mean, std: what the model was trained with, per channel in [0, 1] units.
    cache: whether each image's result is kept and given again; see `Cache`.
    model_chans: channels that the model reads.
    """

    def __init__(
        self,
        in_chans: int,
        input_size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        cache: bool,
        model_chans: int = 3,
    ):
        super().__init__()
        if in_chans not in (1, model_chans):
            raise UserError(
                f"the target's model reads {model_chans} channels (or 1, repeated), encoder.in_chans={in_chans}: "
                "take a target made of the images themselves, such as norm_pixels"
            )
        self.input_size, self.model_chans = input_size, model_chans
        self.standardize = Standardize(model_chans, mean, std)
        self.cache = Cache() if cache else None

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        """What the model gives for standardised images of `input_size`, for all places of the encoder's grid."""
        raise NotImplementedError

    def forward(self, images: Images) -> Wanted:
        """`encode` of the images, in float32: computed in it on a CPU, under the surrounding autocast on a GPU."""
        return self.cache.recall(images, self._teach) if self.cache else self._teach(images)

    def _teach(self, images: Images) -> Wanted:
        pixels = as_float(images)
        if tuple(pixels.shape[-2:]) != self.input_size:
            pixels = F.interpolate(pixels, self.input_size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast("cpu", enabled=False):
            wanted = self.encode(self.standardize(pixels.expand(-1, self.model_chans, -1, -1)))
        return Wanted(**{name: x.float() if x.is_floating_point() else x for name, x in parts(wanted).items()})


def class_attention(
    tokens: Float[Tensor, "B N D"],
    weight: Float[Tensor, "qkv D"],
    bias: Float[Tensor, " qkv"] | None,
    num_heads: int,
    num_prefix_tokens: int = 1,
    norms: tuple[nn.Module, nn.Module] | None = None,
) -> Float[Tensor, "B L"]:
    """How much the class token looks at each place: softmax over all tokens, mean over the heads, prefix tokens cut off.

    The rows are not brought to sum 1 again. Source: MILAN (arXiv 2208.06049).

    tokens: what the attention reads. weight, bias: of its fused query, key and value. norms: of queries and keys.
    """
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    with torch.autocast(tokens.device.type, enabled=False):  # few products, and an exponential follows
        reads = zip((tokens[:, :1].float(), tokens.float()), weight.chunk(3), biases, strict=False)
        query, key = (rearrange(F.linear(x, w, b), "b n (h d) -> b h n d", h=num_heads) for x, w, b in reads)
        if norms:
            query, key = norms[0](query), norms[1](key)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1)[:, 0, num_prefix_tokens:]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module is given first at each call, as long as the context lasts."""
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        yield seen
