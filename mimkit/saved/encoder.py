"""The hand-over in a run's folder: `encoder.safetensors` (timm's own names) and `encoder.json` (how to build it)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import mimkit
from mimkit import registry, schema
from mimkit.disk import write_text
from mimkit.errors import UserError
from mimkit.saved.resize import resize
from mimkit.saved.tokenizer import CodeEncoder
from mimkit.types import Encoder, Size
from mimkit.weight_files import fill, read_weights, write_weights

FORMAT = 1  # of encoder.json
NAME = "encoder.safetensors"
SAME = 1e-4  # authors compute the same sine-cosine positions in other precisions
SHARED, OF_BLOCK = "rel_pos_bias.relative_position_bias_table", "blocks.{}.attn.relative_position_bias_table"


def save_encoder(folder: Path, encoder: Encoder, name: str, options: Mapping[str, Any]) -> None:
    """Write `encoder.safetensors` and `encoder.json` into `folder`, each whole or not at all.

    name, options: the encoder's name in the registry and all of its options.
    Raises OSError (disk full, …).
    """
    if isinstance(encoder, CodeEncoder):  # whose tokenizer goes with it
        options = {**options, "tokenizer": encoder.tokenizer.description}
    description = {
        "format": FORMAT,
        "encoder": name,
        "options": dict(options),
        "image_size": encoder.image_size,
        "mimkit": mimkit.__version__,
    }
    write_weights(folder / NAME, encoder.timm_model.state_dict())
    write_text((folder / NAME).with_suffix(".json"), json.dumps(description, indent=1) + "\n")


def load(path: str | Path, image_size: int | Size | None = None, **changes: Any) -> Encoder:
    """The encoder of a run's folder or of a weights file with its JSON beside it: frozen, in eval mode, never masking.

    image_size: for other images than it was trained with, a side or (height, width) in pixels; learned positions are
        resampled, fixed ones computed anew.
    changes: options of the encoder that are to differ and leave its weights as they are, such as drop_path=0.1;
        rel_pos="block" gives each block its own copy of a table that all shared, as BEiT is fine-tuned.
    Raises UserError where there is none, where a file is damaged, where the two files do not fit each other, or where
    the encoder cannot be of that size or has no such option.
    """
    weights = weights_file(Path(path))
    name, options, trained_size = describe(weights, changes)
    encoder = _build(name, options, trained_size)
    fixed = {name: x.detach().clone() for name, x in encoder.timm_model.named_parameters() if not x.requires_grad}
    tensors = read_weights(weights)
    if "rel_pos" in changes and (table := tensors.pop(SHARED, None)) is not None:
        tensors |= {OF_BLOCK.format(block): table for block in range(encoder.num_layers)}
    fill(encoder.timm_model, tensors, str(weights), "the encoder of its JSON file")
    size = _pair(image_size)
    if size is not None and size != trained_size:
        saved = encoder.timm_model.state_dict()
        computed = {name for name, x in fixed.items() if torch.allclose(x, saved[name], atol=SAME)}
        trained, encoder = encoder, _build(name, options, size)
        resize(trained, encoder, computed)
    return encoder.requires_grad_(False).eval()


def untrained(path: str | Path, image_size: int | Size | None = None, **changes: Any) -> Encoder:
    """The same network as `load` gives, with its initial weights, drawn from torch's global generator; in training mode.

    A tokenizer inside is the trained one. Raises UserError as `load` does.
    """
    weights = weights_file(Path(path))
    name, options, trained_size = describe(weights, changes)
    encoder = _build(name, options, _pair(image_size) or trained_size)
    if isinstance(encoder, CodeEncoder):
        own = {name.partition(".")[2]: x for name, x in read_weights(weights).items() if name.startswith("tokenizer.")}
        fill(encoder.tokenizer, own, str(weights), "the tokenizer of its JSON file")
    return encoder


def _build(name: str, options: Mapping[str, Any], image_size: Size) -> Encoder:
    encoder: Encoder = registry.build("encoder", name, options, {"image_size": image_size, "feed": "all"})
    return encoder


def _pair(image_size: int | Size | None) -> Size | None:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def weights_file(path: Path) -> Path:
    """The encoder's weights file at `path`, a run's folder or the file itself. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such run folder or weights file")
    weights = path / NAME if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"{path} holds no {NAME}; a run writes it with its first checkpoint")
    if not weights.with_suffix(".json").is_file():
        raise UserError(
            f"{weights} has no {weights.with_suffix('.json').name} beside it; for others' weights build a model "
            "and use mimkit.load_official(model, file)"
        )
    return weights


def describe(weights: Path, changes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any], tuple[int, int]]:
    """Name, checked options and image size of the encoder whose weights file is given, from the JSON beside it.

    changes: options that are to differ.
    Raises UserError where that file is damaged or says what this version does not know.
    """
    path = weights.with_suffix(".json")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, name, options = told["format"], told["encoder"], dict(told["options"])
        image_size: tuple[int, int] = schema.typed(told["image_size"], tuple[int, int])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}); write it anew") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this mimkit {mimkit.__version__} reads {FORMAT}; update mimkit")
    component, facts = registry.find("encoder", name), registry.ROLES["encoder"].facts
    options |= changes or {}
    values, problems = schema.check(component, options, f"encoder '{name}'", lambda _: str(path), facts)
    if problems:
        raise UserError("\n".join(problems))
    return name, values, image_size
