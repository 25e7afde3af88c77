"""Features of CLIP's image tower, by OpenCLIP. MILAN (arXiv 2208.06049), EVA (2211.07636) and VQ-KD (2208.06366) take all
tokens through `ln_post` and `proj`, which CLIP itself applies to the class token only; MaskDistill (2210.10615) neither.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.teachers.open_clip import download, find_clip, image_tower
from mimkit.teachers.teacher import Teacher, class_attention, inputs_of
from mimkit.types import Size, Wanted


class CLIP(Teacher):
    """Patch tokens (B, L, D) of a frozen CLIP image tower, at the encoder's grid.

    model: OpenCLIP's name of a ViT (the -quickgelu one for a file of OpenAI's weights), or local-dir:FOLDER.
    pretrained: published tag or weights file; not read with a local-dir, whose folder holds the weights.
    layer: block whose output is taken, counted from 0; negative from the end.
    norm: whether ln_post follows, on every token.
    proj: whether the projection to the space shared with text follows, on every token.
    cls: whether the class token is wanted too.
    saliency: whether the last block's attention from the class token is told, for masks that follow it.
    mean: per channel in [0, 1] units; null is the model's own.
    std: per channel in [0, 1] units; null is the model's own.
    cache: whether features are kept in memory, for images that come again without augmentation.
    """

    normalizer, loss = "l2", "cosine"

    def __init__(
        self,
        *,
        in_chans: int,
        grid: Size,
        model: str = "ViT-B-16",
        pretrained: str | None = "openai",
        layer: int = -1,
        norm: bool = True,
        proj: bool = True,
        cls: bool = False,
        saliency: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        cache: bool = False,
    ):
        config, known, path = find_clip(model, pretrained)
        vision = config["vision_cfg"]
        depth = vision.layers
        if vision.timm_model_name or not isinstance(depth, int):
            raise UserError(f"target clip reads OpenCLIP's own ViTs, '{model}' is another network: take target=timm")
        if not -depth <= layer < depth:
            raise UserError(f"target.layer={layer}: '{model}' has blocks 0 to {depth - 1}, or -{depth} to -1")
        if proj and not norm:
            raise UserError("target.proj=true reads normalised tokens: take target.norm=true too, or target.proj=false")
        if norm and vision.attentional_pool:
            raise UserError(f"'{model}' pools before it normalises: take target.norm=false target.proj=false")
        input_size = (grid[0] * vision.patch_size, grid[1] * vision.patch_size)
        super().__init__(in_chans, input_size, mean or known["mean"], std or known["std"], cache)
        self.visual = image_tower(config, grid, path or download(model, known))
        if saliency and not isinstance(self.visual.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            raise UserError(f"target.saliency: '{model}' has no plain attention; take target.saliency=false")
        self.layer, self.norm, self.proj, self.cls, self.saliency = layer % depth, norm, proj, cls, saliency
        self.dim = config["embed_dim"] if proj else vision.width

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        if not self.saliency:
            return self._features(images)
        attention = self.visual.transformer.resblocks[-1].attn
        with inputs_of(attention) as read:
            wanted = self._features(images)
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        return replace(wanted, saliency=class_attention(read[0], weight, bias, attention.num_heads))

    def _features(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        found = self.visual.forward_intermediates(
            images,
            indices=[self.layer],
            stop_early=not self.saliency,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = torch.cat([*found["image_intermediates_prefix"], *found["image_intermediates"]], dim=1)
        tokens = self.visual.ln_post(tokens) if self.norm else tokens
        tokens = tokens @ self.visual.proj if self.proj else tokens
        return Wanted(tokens[:, 1:], tokens[:, 0] if self.cls else None)
