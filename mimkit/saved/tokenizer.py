"""A trained tokenizer in a folder: `tokenizer.safetensors` (encoder and head) and `tokenizer.json` (how to build both).

A run whose head gives codes writes them (`mimkit/weights/tokenizer.py`); whatever works on codes reads them here.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit import schema
from mimkit.errors import UserError
from mimkit.teachers.published import fixed_seed
from mimkit.types import Encoder, Features, Images, Mask
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


class FrozenTokenizer(nn.Module):
    """A trained tokenizer inside another model: frozen, in eval mode, left out of checkpoints.

    source: the tokenizer's folder; or what its tokenizer.json says, and then the weights are yet to be loaded.
    option: names the source in messages.

    Raises UserError as `load_tokenizer` does.
    """

    moving = False

    def __init__(self, source: str | Mapping[str, Any], option: str):
        super().__init__()
        if isinstance(source, str):
            self.encoder, self.head = load_tokenizer(source, option)
            self.description = _read((Path(source) / NAME).with_suffix(".json"))
        else:
            self.encoder, self.head = _build(source, option)
            self.description = dict(source)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenTokenizer":
        """Stays in eval mode."""
        return super().train(False)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.head.vocab_size

    @property
    def can_decode(self) -> bool:
        """Whether its codes become images again."""
        return inspect.ismethod(getattr(self.head, "decode", None))  # VQ-KD's layer of that name makes features

    @torch.no_grad()
    def codes(self, images: Images) -> Int[Tensor, "B L"]:
        """The code of each place; the same under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.head.codes(self.encoder(images))

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] of a tokenizer that `can_decode`."""
        head: Any = self.head
        return head.decode(codes).float().clamp(0, 1)


class CodeEncoder(Encoder):
    """An encoder that reads the codes of a frozen tokenizer in place of pixels."""

    reads_codes = True

    @property
    def tokenizer(self) -> FrozenTokenizer:
        """What finds codes in images: a part of `timm_model`, so that both are handed over as one."""
        return self.timm_model.tokenizer

    def encode(self, codes: Int[Tensor, "B L"], mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of codes; arguments else as for `forward`."""
        raise NotImplementedError


def load_tokenizer(folder: str | Path, option: str = "target.checkpoint") -> tuple[Encoder, Tokenizer]:
    """Encoder and head of a run's folder or of an imported tokenizer's: frozen, in eval mode; `codes` needs no mask.

    option: the one that names the folder, for messages. Raises UserError where there is none, where a file is damaged, or
    where the two files do not fit each other.
    """
    weights = Path(folder) / NAME
    if not Path(folder).exists():
        raise UserError(
            f"tokenizer {folder}: no such folder; `mimkit train vqkd` makes one, or vqgan; {option}=RUN names it"
        )
    if Path(folder).is_file():
        raise UserError(
            f"{folder} is a file, a tokenizer is a folder: make one of the authors' weights by "
            f"`mimkit import {folder} --as vqkd -o FOLDER` (or --as vqgan)"
        )
    if not (weights.is_file() and weights.with_suffix(".json").is_file()):
        raise UserError(f"{folder} holds no {NAME}; a run with head=quantizer or vq_decoder writes it first")
    path = weights.with_suffix(".json")
    encoder, head = _build(_read(path), str(path))
    both = nn.ModuleDict({"encoder": encoder, "head": head})
    fill(both, read_weights(weights), str(weights), "the tokenizer of its JSON file")
    both.requires_grad_(False).eval()
    return encoder, head


def _read(path: Path) -> dict[str, Any]:
    """What tokenizer.json says."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _build(told: Mapping[str, Any], source: str) -> tuple[Encoder, Any]:
    """Encoder and head from what tokenizer.json says, on the CPU; their weights leave the generator of random numbers
    alone.
    """
    try:
        version, out_dim, chosen = told["format"], int(told["out_dim"]), {r: told[r] for r in ("encoder", "head")}
        options = {role: (str(choice["name"]), dict(choice["options"])) for role, choice in chosen.items()}
        image_size: tuple[int, int] = schema.typed(told["image_size"], tuple[int, int])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(source, error) from error
    if version != FORMAT:
        raise UserError(f"{source} has format {version}, this mimkit reads {FORMAT}; update mimkit")
    with fixed_seed(), torch.device("cpu"):
        given = {"image_size": image_size, "feed": "all"}
        encoder: Encoder = schema.construct("encoder", *options["encoder"], given, source)
        facts = {
            "encoder_dim": encoder.embed_dim,
            "num_layers": encoder.num_layers,
            "grid": encoder.grid,
            "out_grid": encoder.out_grid,
            "patch_size": encoder.patch_size,
            "in_chans": encoder.in_chans,
            "feed": "all",
            "out_dim": out_dim,
        }
        head = schema.construct("head", *options["head"], facts, source)
    if not isinstance(head, Tokenizer):
        raise UserError(f"{source}: head '{options['head'][0]}' gives no codes; take head=quantizer or vq_decoder")
    return encoder, head


def _damaged(source: str | Path, error: Exception) -> UserError:
    return UserError(f"{source} is damaged ({type(error).__name__}: {str(error)[:200]}); write it anew")
