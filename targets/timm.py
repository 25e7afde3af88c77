"""Features of any timm vision model: DINO, DeiT, ConvNets, Swin and others as teachers. Source: MaskDistill (arXiv
2210.10615), which unifies masked image modelling over its teachers.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mimkit.errors import UserError
from mimkit.teachers.published import one_line
from mimkit.teachers.teacher import Teacher, class_attention, inputs_of
from mimkit.teachers.timm import load_timm
from mimkit.types import Size, Wanted


class Timm(Teacher):
    """Features (B, L, D) of a frozen timm model, at the encoder's grid.

    model: timm's name, with or without the tag of its weights, or local-dir:FOLDER.
    pretrained: published weights, a weights file, or random weights, the same at every build (false).
    layer: block of a ViT or stage of a ConvNet or Swin whose output is taken, counted from 0; negative from the end.
    norm: whether the model's final norm follows, where it is one of tokens (not of their mean).
    cls: whether the class token is wanted too.
    saliency: whether the last block's attention from the class token is told, for masks that follow it.
    mean: per channel in [0, 1] units; null is the model's own.
    std: per channel in [0, 1] units; null is the model's own.
    cache: whether features are kept in memory, for images that come again without augmentation.
    """

    normalizer, loss = "layer_norm", "smooth_l1"

    def __init__(
        self,
        *,
        in_chans: int,
        grid: Size,
        model: str,
        pretrained: bool | str = True,
        layer: int = -1,
        norm: bool = True,
        cls: bool = False,
        saliency: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        cache: bool = False,
    ):
        timm_model = load_timm(model, pretrained).eval()
        stages, stated = timm_model.feature_info, timm_model.pretrained_cfg
        if not -len(stages) <= layer < len(stages):
            raise UserError(f"target.layer={layer}: '{model}' has 0 to {len(stages) - 1}, or {-len(stages)} to -1")
        has_cls = getattr(timm_model, "cls_token", None) is not None
        if cls and not has_cls:
            raise UserError(f"target.cls: '{model}' has no class token; take target.cls=false")
        if saliency and not (has_cls and _is_plain(timm_model)):
            raise UserError(f"target.saliency needs a plain ViT with a class token, '{model}' is none")
        stride = stages[layer]["reduction"]
        input_size = (grid[0] * stride, grid[1] * stride)
        super().__init__(in_chans, input_size, mean or stated["mean"], std or stated["std"], cache)
        self.timm_model, self.layer, self.norm = timm_model, layer % len(stages), norm
        self.cls, self.saliency = cls, saliency
        self.dim = stages[layer]["num_chs"]
        self._fit(model, grid, stride)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        if not self.saliency:
            return self._features(images)
        attention = self.timm_model.blocks[-1].attn
        with inputs_of(attention) as read:
            wanted = self._features(images)
        qkv, prefix, norms = attention.qkv, self.timm_model.num_prefix_tokens, (attention.q_norm, attention.k_norm)
        saliency = class_attention(read[0], qkv.weight, qkv.bias, attention.num_heads, prefix, norms)
        return replace(wanted, saliency=saliency)

    def _features(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        found = self.timm_model.forward_intermediates(
            images,
            indices=[self.layer],
            norm=self.norm,
            stop_early=not self.saliency,
            output_fmt="NCHW",
            intermediates_only=True,
            **({"return_prefix_tokens": True} if self.cls else {}),
        )[0]
        features, prefix = found if self.cls else (found, None)
        return Wanted(rearrange(features, "b d h w -> b (h w) d"), None if prefix is None else prefix[:, 0])

    @torch.no_grad()
    def _fit(self, model: str, grid: Size, stride: int) -> None:
        """Set the model to `input_size` where it must be told, and see by a trial that there is a feature for each place."""
        try:
            if hasattr(self.timm_model, "set_input_size"):
                self.timm_model.set_input_size(img_size=self.input_size)
            count = self._features(torch.zeros(1, 3, *self.input_size)).values.shape[1]
            problem = "" if count == grid[0] * grid[1] else f"it gives {count}"
        except Exception as error:  # timm raises what it likes
            problem = one_line(error)
        if problem:
            stated = self.timm_model.pretrained_cfg
            fits = _by(side // stride for side in stated["input_size"][1:])
            hint = f"; it fits a grid of {fits} only" if stated.get("fixed_input_size") else ""
            raise UserError(
                f"'{model}' gives no {_by(grid)} features for images of {_by(self.input_size)} ({problem}){hint}"
            )


def _is_plain(timm_model: Any) -> bool:
    """Whether the last block's attention is the usual one, whose weights `class_attention` computes."""
    from timm.layers import Attention
    from timm.models import VisionTransformer

    return isinstance(timm_model, VisionTransformer) and type(getattr(timm_model.blocks[-1], "attn", None)) is Attention


def _by(sides: Iterable[int]) -> str:
    return "x".join(map(str, sides))
