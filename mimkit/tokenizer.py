"""A trained tokenizer in a folder: `tokenizer.safetensors` (encoder and head) and `tokenizer.json` (how to build both).

A run whose head gives codes writes them (`mimkit/weights/tokenizer.py`); whatever works on codes reads them here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor, nn

from mimkit import registry, schema
from mimkit.errors import UserError
from mimkit.teachers.published import fixed_seed
from mimkit.types import Encoder, Features
from mimkit.weight_files import fill, read_weights

FORMAT = 1  # of tokenizer.json
NAME = "tokenizer.safetensors"


@runtime_checkable
class Tokenizer(Protocol):
    """A head that turns the encoder's features into codes.

    vocab_size: number of codes.
    """

    vocab_size: int

    def codes(self, features: Features) -> Int[Tensor, "B L"]:
        """The code of each place, 0 to vocab_size - 1."""


def load_tokenizer(folder: str | Path) -> tuple[Encoder, Tokenizer]:
    """Encoder and head of a run's folder or of an imported tokenizer's: frozen, in eval mode; `codes` needs no mask.

    Raises UserError where there is none, where a file is damaged, or where the two files do not fit each other.
    """
    weights = Path(folder) / NAME
    if not Path(folder).exists():
        raise UserError(
            f"tokenizer {folder}: no such folder; `mimkit train vqkd` makes one, target.checkpoint=RUN names it"
        )
    if Path(folder).is_file():
        raise UserError(
            f"{folder} is a file, a tokenizer is a folder: make one of the authors' weights by "
            f"`mimkit import {folder} --as vqkd -o FOLDER`"
        )
    if not (weights.is_file() and weights.with_suffix(".json").is_file()):
        raise UserError(f"{folder} holds no {NAME}; a run with head=quantizer writes it with its first checkpoint")
    encoder, head = _build(weights.with_suffix(".json"))
    both = nn.ModuleDict({"encoder": encoder, "head": head})
    fill(both, read_weights(weights), str(weights), "the tokenizer of its JSON file")
    both.requires_grad_(False).eval()
    return encoder, head


def _build(path: Path) -> tuple[Encoder, Any]:
    """Encoder and head from what tokenizer.json says; their weights leave the generator of random numbers alone."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, out_dim, chosen = told["format"], int(told["out_dim"]), {r: told[r] for r in ("encoder", "head")}
        options = {role: (str(choice["name"]), dict(choice["options"])) for role, choice in chosen.items()}
        image_size: tuple[int, int] = schema.typed(told["image_size"], tuple[int, int])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}); write it anew") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this mimkit reads {FORMAT}; update mimkit")
    with fixed_seed():
        encoder: Encoder = _component("encoder", *options["encoder"], {"image_size": image_size, "feed": "all"}, path)
        facts = {
            "encoder_dim": encoder.embed_dim,
            "num_layers": encoder.num_layers,
            "grid": encoder.grid,
            "out_grid": encoder.out_grid,
            "feed": "all",
            "out_dim": out_dim,
        }
        head = _component("head", *options["head"], facts, path)
    if not isinstance(head, Tokenizer):
        raise UserError(f"{path}: head '{options['head'][0]}' gives no codes; take head=quantizer")
    return encoder, head


def _component(role: str, name: str, given: Mapping[str, Any], facts: Mapping[str, Any], source: Path) -> Any:
    component = registry.find(role, name)
    values, problems = schema.check(
        component, given, f"{role} '{name}'", lambda _: str(source), registry.ROLES[role].facts
    )
    if problems:
        raise UserError(problems[0])
    return registry.build(role, name, values, facts)
