"""An encoder's weights at another image size: positions are resampled by timm's rules, all else stays."""

from collections.abc import Mapping, Set
from math import prod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.types import Encoder, Size

TABLE = "relative_position_bias_table"


def resize(source: Encoder, into: Encoder, computed: Set[str]) -> None:
    """Load the weights of `source` into `into`, an encoder with the same options for another image size.

    computed: names of fixed positions that `into` has computed for itself. Learned absolute positions are resampled
    bicubically, relative ones on timm's (BEiT's) denser grid around the centre. Raises UserError for a tensor that
    depends on the image size in another way.
    """
    wanted: Mapping[str, Tensor] = into.timm_model.state_dict()
    tensors = {}
    for name, value in source.timm_model.state_dict().items():
        path, _, last = name.rpartition(".")
        if name in computed:
            value = wanted[name]
        elif last == TABLE:
            value = _table(value, *(encoder.timm_model.get_submodule(path) for encoder in (source, into)))
        elif name == "pos_embed" and value.ndim == 3:
            prefix = value.shape[1] - prod(source.out_grid)  # positions of class tokens
            if prefix == wanted[name].shape[1] - prod(into.out_grid) >= 0:
                value = _absolute(value, source.out_grid, into.out_grid, prefix)
        if value.shape != wanted[name].shape:
            height, width = into.image_size
            raise UserError(
                f"image_size={height}x{width}: '{name}' {tuple(value.shape)} of the encoder cannot be brought to "
                f"{tuple(wanted[name].shape)}; take the image size that it was trained with"
            )
        tensors[name] = value
    into.timm_model.load_state_dict(tensors)


def _absolute(positions: Float[Tensor, "1 N D"], old: Size, new: Size, prefix: int) -> Float[Tensor, "1 M D"]:
    from timm.layers.pos_embed import resample_abs_pos_embed

    return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)


def _table(table: Float[Tensor, "rows H"], source: Any, into: Any) -> Float[Tensor, "more H"]:
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    shape = tuple(into.relative_position_bias_table.shape)
    return resize_rel_pos_bias_table(table, into.window_size, shape, source.window_size)
