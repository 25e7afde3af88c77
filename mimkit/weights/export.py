"""The encoder for other software: as it was handed over, or as a folder that timm loads."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mimkit.disk import write_text
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError, nearest
from mimkit.types import Encoder
from mimkit.weight_files import write_weights
from mimkit.weights.handover import describe, load, save_encoder, weights_file

FORMS = ("timm", "safetensors")
ARCHITECTURE = "vit_base_patch16_224"  # timm's VisionTransformer as it is; `model_args` says all that differs


def export(run: Path, out: Path, to: str) -> str:
    """Write the encoder of a run's folder or weights file into the folder `out`; gives a text on how to load it.

    to: `timm`, a folder for `timm.create_model`; `safetensors`, the weights and the JSON that `mimkit.load` reads.
    Raises UserError for another form, a missing or damaged encoder, or a folder that cannot be written.
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: unknown form{nearest(to, FORMS)} Known: {', '.join(FORMS)}")
    weights = weights_file(run)
    name, options, _ = describe(weights)
    encoder = load(weights)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if to == "safetensors":
            save_encoder(out, encoder, name, options)
        else:
            _write_timm(out, encoder, name, options)
    except OSError as error:
        raise UserError(f"-o {out} cannot be written: {error.strerror}; choose another folder") from error
    if to == "safetensors":
        return f'{out}: load it with mimkit.load("{out}")'
    return (
        f'{out}: load it with timm.create_model("local-dir:{out}", pretrained=True); it gives the mean of the patch '
        "tokens, and expects images that are normalised by the mean and std in its pretrained_cfg"
    )


def _write_timm(out: Path, encoder: Encoder, name: str, options: dict[str, Any]) -> None:
    if not isinstance(encoder, ViT):
        raise UserError(f"--to timm: encoder '{name}' has no equal in timm's registry; use --to safetensors")
    write_weights(out / "model.safetensors", encoder.timm_model.state_dict())
    write_text(out / "config.json", json.dumps(_timm_config(encoder, options["mlp_ratio"]), indent=1) + "\n")


def _timm_config(encoder: ViT, mlp_ratio: float) -> dict[str, Any]:
    """What timm's config.json says of a ViT: its constructor's arguments, and how images are to be prepared.

    As in mimkit, the pooled feature is the mean of the patch tokens after the final norm.
    """
    vit: Any = encoder.timm_model
    model_args = {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.in_chans,
        "embed_dim": encoder.embed_dim,
        "depth": encoder.num_layers,
        "num_heads": vit.blocks[0].attn.num_heads,
        "mlp_ratio": mlp_ratio,
        "class_token": vit.cls_token is not None,
        "global_pool": "avg",
        "fc_norm": False,  # with it timm would leave the final norm out
    }
    pretrained_cfg = {
        "input_size": (encoder.in_chans, *encoder.image_size),
        "fixed_input_size": True,
        "mean": _per_channel(encoder.standardize.mean),
        "std": _per_channel(encoder.standardize.std),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }


def _per_channel(values: Float[Tensor, "C 1 1"]) -> list[float]:
    """A float32's seven digits: 0.485 rather than 0.48500001430511475."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]
