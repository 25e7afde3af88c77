"""The network that is fine-tuned: an encoder with a linear classifier, and the rate of each of its layers.

Sources: MAE (arXiv 2111.06377), BEiT (2106.08254) and SimMIM (2111.09886), whose codes agree in all of this.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.evaluate.frozen import Pool
from mimkit.types import Encoder, Features, Images

HEAD_STD = 2e-5  # MAE's; BEiT and SimMIM write 0.02 and scale it by 0.001
INNER = "encoder.timm_model."


class Classifier(nn.Module):
    """An encoder, all of it trained, and a linear layer on one feature of each image.

    pool: mean of the patch tokens after the last block, before the encoder's own norm, then a new norm `fc_norm`; of
        encoders that give no intermediate layers, the mean of the tokens after their own norm. Or the class token
        after the encoder's own norm.
    classes: their number.
    """

    def __init__(self, encoder: Encoder, pool: Pool, classes: int):
        super().__init__()
        self.encoder, self.pool = encoder.requires_grad_(True), pool
        self.layers = (encoder.num_layers - 1,) if pool == "mean" and encoder.num_layers else ()
        self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6) if self.layers else nn.Identity()
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Images) -> Float[Tensor, "B K"]:
        """Logits.

        Raises UserError where the encoder has no class token to pool.
        """
        features = self.encoder(images, layers=self.layers)
        if self.layers:
            features = Features(features.layers[0], features.num_prefix_tokens)
        pooled = features.cls if self.pool == "cls" else features.pooled
        if pooled is None:
            raise UserError("finetune.pool=cls: this encoder has no class token; take finetune.pool=mean")
        return self.head(self.fc_norm(pooled))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer of each parameter by its name, as timm asks for it: 0 embeds, block l is layer l, the rest the last.

        Where timm does not tell the layers of its model, all is one layer.
        """
        from timm.models import group_parameters

        model: Any = self.encoder.timm_model
        if not hasattr(model, "group_matcher"):
            return lambda name: 0
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        for name in list(layers):
            if name.startswith(("norm.", "head.")):  # of the end: timm counts the norm to the last block
                del layers[name]
            elif name.startswith("layers.") and ".downsample." in name:  # in Swin's own code it ends the stage before
                layers[name] -= 1
        last = max(layers.values()) + 1
        return lambda name: layers.get(name.removeprefix(INNER), last)


def build_optimizer(model: Classifier, weight_decay: float, layer_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; each group's `lr_scale` is layer_decay to the power of how many layers lie above.

    Biases and other one-dimensional parameters, class token and positions do not decay.
    Raises UserError where layers are to differ and timm does not tell those of its model.
    """
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

    inner: Any = model.encoder.timm_model
    if layer_decay != 1 and not hasattr(inner, "group_matcher"):
        raise UserError(
            "finetune.layer_decay: timm does not tell the layers of this model; take finetune.layer_decay=1"
        )
    listed = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    # BEiT's and SimMIM's tables of relative positions, one in each block, do decay; Swin's do not.
    exempt = {INNER + name for name in listed if not name.startswith("blocks.")}
    groups = param_groups_layer_decay(model, weight_decay, exempt, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
