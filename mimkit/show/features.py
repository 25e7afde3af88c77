"""What an encoder's features look like: principal components of the patch tokens, attention of the class token."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.drawing.colours import fit_components, heat, rgb, shown_channels
from mimkit.drawing.sheet import ROWS, draw_sheet
from mimkit.evaluate.reconstruction import place_pixels
from mimkit.types import Encoder, Features, Images, as_float


@torch.no_grad()
def draw_features(encoder: Encoder, images: Images, path: Path) -> None:
    """Write a PNG with a row for each of the first 8 images (B, C, H, W), as the full image is encoded.

    Columns: original; the patch tokens' first three principal components (over all shown images together) as colours;
    where the class token of the last block looks, mean over the heads, if the encoder has a class token and the
    attention of timm's ViTs.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        images = images[:ROWS].to(device)
        features, attention = _encode(encoder, images)
    finally:
        encoder.train(training)
    images, tokens, grid = as_float(images), features.tokens.float(), features.grid or encoder.grid
    colours = fit_components(tokens.flatten(0, 1))(tokens)
    columns = {
        "original": rgb(images),
        "patch tokens, first 3\nprincipal components": place_pixels(colours, grid, images),
    }
    if attention is not None:
        shown = heat(attention, attention.amax(1, keepdim=True))
        columns["class token's attention,\nyellow: most in the image"] = place_pixels(shown, grid, images)
    size = "x".join(map(str, grid))
    draw_sheet(columns, f"full images, {size} tokens of width {tokens.shape[2]}{shown_channels(images.shape[1])}", path)


def _encode(encoder: Encoder, images: Images) -> tuple[Features, Float[Tensor, "B L"] | None]:
    """Features, and the last block's attention from the class token to the patches, as timm's own block computes it.

    Fused attention never forms its weights: for this one pass the block computes them, and its dropout (idle in eval
    mode) hands them over. So relative positions and whatever else acts on the weights is in.
    """
    blocks: Any = getattr(encoder.timm_model, "blocks", None)
    attn: Any = getattr(blocks[-1], "attn", None) if blocks else None
    if not (hasattr(attn, "attn_drop") and hasattr(attn, "fused_attn")):
        return encoder(images), None
    seen: list[Tensor] = []
    hook = attn.attn_drop.register_forward_hook(lambda module, given, weights: seen.append(weights))
    fused, attn.fused_attn = attn.fused_attn, False
    try:
        features = encoder(images)
    finally:
        attn.fused_attn = fused
        hook.remove()
    if features.cls is None:
        return features, None
    return features, seen[0][:, :, 0, features.num_prefix_tokens :].float().mean(1)
