"""The same MAE by mimkit and by the implementations that can be installed, for `step.py`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mimkit


@dataclass(frozen=True)
class Shape:
    """One configuration; an MLP is four times as wide as its tokens, three quarters of the places are hidden."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    batch: int

    @property
    def places(self) -> int:
        """L, patch places of an image."""
        return (self.image_size // self.patch_size) ** 2

    def images(self) -> Tensor:
        """A ready batch of uint8 images."""
        return torch.randint(0, 256, (self.batch, 3, self.image_size, self.image_size), dtype=torch.uint8)

    def flops(self) -> float:
        """Matrix products of one training step per image, as published: every token passes every block, forward x 3."""
        visible, everything, pixels = self.places // 4 + 1, self.places + 1, 3 * self.patch_size**2
        total = 2 * visible * self.width * (pixels + self.decoder_width) + 2 * self.places * self.decoder_width * pixels
        halves = (self.depth, visible, self.width), (self.decoder_depth, everything, self.decoder_width)
        for depth, tokens, width in halves:
            total += depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
        return 3.0 * total


SHAPES = {
    "a": Shape(224, 16, 768, 12, 12, 512, 8, 16, batch=16),
    "b": Shape(32, 4, 192, 12, 3, 192, 4, 3, batch=256),
}


def build_mimkit(shape: Shape) -> Any:
    """The shipped recipe in this shape; reads uint8 images."""
    widths = {"encoder": (shape.width, shape.depth, shape.heads)}
    widths["head"] = (shape.decoder_width, shape.decoder_depth, shape.decoder_heads)
    overrides = ["mask.ratio=0.75", f"image_size={shape.image_size}", f"encoder.patch_size={shape.patch_size}"]
    for role, (width, depth, heads) in widths.items():
        overrides += [f"{role}.embed_dim={width}", f"{role}.depth={depth}", f"{role}.num_heads={heads}"]
    return mimkit.build("mae", *overrides)


def build_huggingface(shape: Shape) -> Any:
    """transformers' model with its default attention."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    encoder: Any = dict(zip(names, (shape.width, shape.depth, shape.heads, 4 * shape.width)))
    values = (shape.decoder_width, shape.decoder_depth, shape.decoder_heads, 4 * shape.decoder_width)
    decoder: Any = {f"decoder_{name}": value for name, value in zip(names, values)}
    sizes: Any = {"image_size": shape.image_size, "patch_size": shape.patch_size}
    return ViTMAEForPreTraining(ViTMAEConfig(**sizes, **encoder, **decoder, norm_pix_loss=True, layer_norm_eps=1e-6))


class Lightly(nn.Module):
    """lightly's modules, put together as in its documentation, with the target normalised per patch."""

    def __init__(self, shape: Shape):
        super().__init__()
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
        from timm.models.vision_transformer import VisionTransformer

        sizes: dict[str, Any] = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        vit = VisionTransformer(shape.image_size, shape.patch_size, num_classes=0, global_pool="", **sizes)
        width = shape.decoder_width
        self.patch_size = shape.patch_size
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.embed = nn.Linear(shape.width, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(shape.places, width, shape.decoder_depth, shape.decoder_heads)
        self.predict = nn.Linear(width, 3 * shape.patch_size**2)

    def forward(self, images: Tensor, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The loss of standardised images; `places` are those kept and those hidden, the class token being place 0."""
        from lightly.models import utils

        size = (len(images), self.backbone.sequence_length)
        keep, hide = places or utils.random_token_mask(size=size, mask_ratio=0.75, device=images.device)
        encoded = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = self.decoder(tokens)
        prediction = self.predict(utils.get_at_index(decoded, hide))
        patches = utils.patchify(images, self.patch_size)
        target = utils.normalize_mean_var(utils.get_at_index(patches, hide - 1), dim=-1)
        return nn.functional.mse_loss(prediction, target)


def build_vit_pytorch(shape: Shape) -> Any:
    """lucidrains' MAE: no class token, pixels not normalised, explicit attention."""
    from vit_pytorch import MAE, ViT

    sizes = {"image_size": shape.image_size, "patch_size": shape.patch_size, "dim": shape.width, "depth": shape.depth}
    heads = {"heads": shape.heads, "dim_head": shape.width // shape.heads}
    encoder = ViT(
        **sizes, **heads, mlp_dim=4 * shape.width, num_classes=1000, pool="mean"
    )  # release 1.26.11 fails with "cls"
    decoder = {"decoder_dim": shape.decoder_width, "decoder_depth": shape.decoder_depth}
    heads = {"decoder_heads": shape.decoder_heads, "decoder_dim_head": shape.decoder_width // shape.decoder_heads}
    return MAE(encoder=encoder, masking_ratio=0.75, **decoder, **heads)


BUILD = {"mimkit": build_mimkit, "huggingface": build_huggingface, "lightly": Lightly, "vit-pytorch": build_vit_pytorch}
