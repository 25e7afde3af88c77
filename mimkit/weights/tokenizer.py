"""The hand-over of a tokenizer in a run's folder, for target=vq of a later run: see `mimkit/saved/tokenizer.py`."""

import json
from pathlib import Path
from typing import Any

from torch import nn

import mimkit
from mimkit.disk import write_text
from mimkit.model import Model
from mimkit.saved.tokenizer import FORMAT, NAME, Tokenizer
from mimkit.weight_files import write_weights


def save_tokenizer(folder: Path, model: Model) -> None:
    """Write `tokenizer.safetensors` and `tokenizer.json`, each whole or not at all, if the first head gives codes.

    Raises OSError (disk full, …).
    """
    name, choice = next(iter(model.recipe.objectives.items()))
    objective: Any = model.objectives[name]
    head, target = objective.head, objective.target
    if not isinstance(head, Tokenizer):
        return
    description = {
        "format": FORMAT,
        "encoder": vars(model.recipe.encoder),
        "head": vars(choice.head),
        "image_size": model.encoder.image_size,
        "in_chans": model.encoder.in_chans,
        "out_dim": target.vocab_size or target.dim,
        "vocab_size": head.vocab_size,
        "mimkit": mimkit.__version__,
    }
    write_weights(folder / NAME, nn.ModuleDict({"encoder": model.encoder, "head": objective.head}).state_dict())
    write_text((folder / NAME).with_suffix(".json"), json.dumps(description, indent=1) + "\n")
