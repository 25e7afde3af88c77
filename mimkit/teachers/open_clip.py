"""OpenCLIP's image towers: by a published name and tag, a weights file, or a local folder."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mimkit.errors import UserError, nearest
from mimkit.teachers.published import one_line, published_weights
from mimkit.types import Size
from mimkit.weight_files import read_weights

FOLDER = "local-dir:"
# A folder's weights: what matches first is read.
WEIGHTS = ("open_clip*.safetensors", "*.safetensors", "open_clip*.bin", "*.bin", "*.pt", "*.pth")


def find_clip(model: str, pretrained: str | None) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
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


def download(model: str, tag: dict[str, Any]) -> Path:
    """The published weights of a tag as a file, from the local cache or the hub. Raises UserError where neither has them."""
    import open_clip

    with published_weights(model, f"target.model={FOLDER}FOLDER or target.pretrained=FILE"):
        return Path(open_clip.download_pretrained(tag))


def image_tower(config: dict[str, Any], grid: Size, path: Path) -> Any:
    """OpenCLIP's image tower with the weights of a file; its positions are resampled to the grid, as OpenCLIP does it.

    Raises UserError where the file does not fit.
    """
    import open_clip
    from timm.layers.pos_embed import resample_abs_pos_embed

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
