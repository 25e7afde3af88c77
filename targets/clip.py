"""Features of CLIP's image tower, by OpenCLIP. MILAN (arXiv 2208.06049), EVA (2211.07636) and VQ-KD (2208.06366) take all
tokens through `ln_post` and `proj`, which CLIP itself applies to the class token only; MaskDistill (2210.10615) neither.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError, nearest
from mimkit.teacher import Teacher, class_attention, inputs_of, one_line, published_weights
from mimkit.types import Size, Wanted
from mimkit.weight_files import read_weights

FOLDER = "local-dir:"
# A folder's weights: what matches first is read.
WEIGHTS = ("open_clip*.safetensors", "*.safetensors", "open_clip*.bin", "*.bin", "*.pt", "*.pth")


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
        config, known, path = _find(model, pretrained)
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
        self.visual = _image_tower(config, grid, path or _download(model, known))
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


def _find(model: str, pretrained: str | None) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """OpenCLIP's configuration of the model, what is known of its weights (mean, std), their file if they need no download.

    Raises UserError for a name, tag or folder that is not there.
    """
    import open_clip

    known = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if model.startswith(FOLDER):
        folder = Path(model.removeprefix(FOLDER))
        files = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
        try:
            told = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
            config = told["model_cfg"] | {"vision_cfg": open_clip.CLIPVisionCfg(**told["model_cfg"]["vision_cfg"])}
            return config, known | told.get("preprocess_cfg", {}), files[0]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"target.model={model}: needs open_clip_config.json and weights ({one_line(error)})"
            ) from error
    name = model.replace("/", "-")
    config, tag = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, pretrained or "")
    if config is None:
        hint = nearest(name, open_clip.list_models()) or ";"
        raise UserError(f"target.model: OpenCLIP has no '{model}'{hint} a folder is given as {FOLDER}FOLDER")
    config["vision_cfg"] = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    if tag:  # which knows how its weights were trained
        return config | {"quick_gelu": config.get("quick_gelu") or tag.get("quick_gelu")}, known | tag, None
    if not Path(pretrained or "").is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        hint = nearest(pretrained or "", tags) or ";"
        raise UserError(f"target.pretrained={pretrained}: no file and no tag of {name}{hint} tags: {', '.join(tags)}")
    return config, known, Path(str(pretrained))


def _download(model: str, tag: dict[str, Any]) -> Path:
    import open_clip

    with published_weights(model, f"target.model={FOLDER}FOLDER or target.pretrained=FILE"):
        return Path(open_clip.download_pretrained(tag))


def _image_tower(config: dict[str, Any], grid: Size, path: Path) -> Any:
    """OpenCLIP's image tower with the weights of a file; its positions are resampled to the grid, as OpenCLIP does it.

    Raises UserError where the file does not fit.
    """
    import open_clip
    from timm.layers import resample_abs_pos_embed

    weights = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    weights = {name[len("visual.") :]: x.float() for name, x in weights.items() if name.startswith("visual.")}
    quick_gelu = bool(config.get("quick_gelu"))
    with torch.device("meta"):  # all weights are the file's; the text tower goes at once
        visual: Any = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], {}, quick_gelu).visual
    try:
        visual.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"weights {path}: no image tower as target.model says ({one_line(error)})") from error
    positions = visual.positional_embedding.detach()[None]
    visual.positional_embedding = nn.Parameter(resample_abs_pos_embed(positions, list(grid), visual.grid_size)[0])
    return visual
