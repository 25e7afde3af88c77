"""The encoder for other software: as it was handed over, or as a folder that timm loads."""

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mimkit.disk import write_text
from mimkit.errors import UserError, nearest
from mimkit.saved.encoder import describe, load, save_encoder, weights_file
from mimkit.types import Encoder
from mimkit.weight_files import write_weights

FORMS = ("timm", "safetensors")
Options = Mapping[str, Any]


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
            return f'{out}: load it with mimkit.load("{out}")'
        gives = _write_timm(out, encoder, name, options)
    except OSError as error:
        raise UserError(f"-o {out} cannot be written: {error.strerror}; choose another folder") from error
    return (
        f'{out}: load it with timm.create_model("local-dir:{out}", pretrained=True); it gives {gives}, '
        "and expects images that are normalised by the mean and std in its pretrained_cfg"
    )


@torch.no_grad()
def _write_timm(out: Path, encoder: Encoder, name: str, options: Options) -> str:
    """Write the folder, load it with timm and compare the features of an image; what timm's pooled feature is.

    Raises UserError where timm's registry holds no equal of the encoder.
    """
    if name not in EQUALS:
        raise UserError(f"--to timm: encoder '{name}' has no equal in timm's registry; use --to safetensors")
    architecture, choices = EQUALS[name](encoder, options)
    images = torch.rand(1, encoder.in_chans, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    standardize: Any = encoder.standardize
    pixels, pooled = standardize(images), encoder(images).pooled
    write_weights(out / "model.safetensors", encoder.timm_model.state_dict())
    like = None  # arguments with which at least the tokens are equal
    for model_args in choices:
        _write_config(out, encoder, architecture, model_args)
        theirs = _loaded(out)
        if theirs is not None and _close(theirs.forward_features(pixels), encoder.timm_model.forward_features(pixels)):
            if _close(theirs(pixels), pooled):
                return "the mean of the patch tokens"
            like = like or model_args
    if like is None:
        raise UserError(f"--to timm: '{architecture}' made of it gives other features; use --to safetensors")
    _write_config(out, encoder, architecture, like)
    return "patch tokens by forward_features, and timm's own pooling of them, which is not their mean"


def _loaded(folder: Path) -> Any:
    """timm's model of the folder, or None where it takes other arguments or has other weights."""
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None


def _close(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-3, atol=1e-4)


def _vit(encoder: Encoder, options: Options) -> tuple[str, list[Options]]:
    vit = encoder.timm_model
    class_token = vit.cls_token is not None
    # with `fc_norm` timm would leave the final norm out
    return "vit_base_patch16_224", [_transformer(encoder, options) | {"class_token": class_token, "fc_norm": False}]


def _beit(encoder: Encoder, options: Options) -> tuple[str, list[Options]]:
    relative = {
        "init_values": options["init_values"],
        "use_abs_pos_emb": options["abs_pos"],
        "use_rel_pos_bias": options["rel_pos"] == "block",
        "use_shared_rel_pos_bias": options["rel_pos"] == "shared",
        "use_fc_norm": False,
    }
    return "beit_base_patch16_224", [_transformer(encoder, options) | relative]


def _eva(encoder: Encoder, options: Options) -> tuple[str, list[Options]]:
    sub_norm = encoder.timm_model.blocks[0].attn.qkv is None  # which also has q, k and v apart
    inner = {"qkv_fused": not sub_norm, "scale_mlp": sub_norm, "use_fc_norm": False}
    return "eva02_base_patch14_224", [_transformer(encoder, {**options, "mlp_ratio": 4 * 2 / 3}) | inner]


def _swin(encoder: Encoder, options: Options) -> tuple[str, list[Options]]:
    asked = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "patch_size", "in_chans")
    return "swin_base_patch4_window7_224", [
        {name: options[name] for name in asked} | {"img_size": encoder.image_size, "global_pool": "avg"}
    ]


def _timm(encoder: Encoder, options: Options) -> tuple[str, list[Options]]:
    """ConvNets know no image size, and families differ in how they are told to pool what the final norm gives."""
    sizes: tuple[Options, ...] = ({"img_size": encoder.image_size}, {})
    norms: tuple[Options, ...] = ({"fc_norm": False}, {"use_fc_norm": False}, {})
    common = {"in_chans": encoder.in_chans, "global_pool": "avg"}
    return options["model"], [{**common, **size, **norm} for size, norm in product(sizes, norms)]


def _transformer(encoder: Encoder, options: Options) -> dict[str, Any]:
    return {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.in_chans,
        "embed_dim": encoder.embed_dim,
        "depth": encoder.num_layers,
        "num_heads": encoder.timm_model.blocks[0].attn.num_heads,
        "mlp_ratio": options["mlp_ratio"],
        "global_pool": "avg",
    }


# By the encoder's name: a model of timm's that is built of the same modules, and the arguments to try, best first, which
# say all that differs. As in mimkit, the pooled feature should be the mean of the patch tokens after the final norm.
EQUALS: dict[str, Callable[[Encoder, Options], tuple[str, list[Options]]]] = {
    "vit": _vit,
    "beit": _beit,
    "eva": _eva,
    "swin": _swin,
    "timm": _timm,
}


def _write_config(out: Path, encoder: Encoder, architecture: str, model_args: Options) -> None:
    """timm's config.json: the constructor's arguments, and how images are to be prepared."""
    from timm.models import get_pretrained_cfg

    names: Any = get_pretrained_cfg(architecture)
    standardize: Any = encoder.standardize
    pretrained_cfg = {
        "input_size": (encoder.in_chans, *encoder.image_size),
        "fixed_input_size": "img_size" in model_args,
        "mean": _per_channel(standardize.mean),
        "std": _per_channel(standardize.std),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": 0,
        "first_conv": names and names.first_conv,
        "classifier": names and names.classifier,
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }
    write_text(out / "config.json", json.dumps(config, indent=1) + "\n")


def _per_channel(values: Float[Tensor, "C 1 1"]) -> list[float]:
    """A float32's seven digits: 0.485 rather than 0.48500001430511475."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]
