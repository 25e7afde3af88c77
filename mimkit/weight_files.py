"""Weight files: read without running anything that they may hold, written whole or not at all."""

import argparse
import errno
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.disk import write_atomically
from mimkit.errors import UserError

WRAPPERS = ("model", "state_dict", "module", "model_state")  # keys under which checkpoints keep their state dict
HARMLESS: list[Any] = [  # what authors' files may hold besides tensors and plain containers: their options
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),  # read as the dict that it is
    (OrderedDict, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),  # the class, as a key
]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict {name: tensor} of a safetensors or torch file, on the CPU.

    It is taken out of the keys in WRAPPERS. Torch files are read with `weights_only`: besides tensors and plain
    containers only options as authors save them may occur, and no code runs.
    Raises UserError where the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    found: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(found, Mapping) and (wrapper := next((key for key in WRAPPERS if _wraps(found, key)), None)):
        found = found[wrapper]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"weights {path}: no state dict, but {type(found).__name__}; names and tensors are needed")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"weights {path}: '{name}' is {type(value).__name__}, no tensor; a state dict is needed")
    return dict(found)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError (disk full, …)."""
    # Each a copy of its own: safetensors refuses tensors that share memory.
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(path, lambda beside: save_tensors(beside, own))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str, what: str) -> None:
    """Load all of a module's state from `tensors`; `source` and `what` name both sides in messages.

    Raises UserError, and loads nothing, where names or shapes differ.
    """
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        there, here = (tuple(side[name].shape) if name in side else "absent" for side in (tensors, wanted))
        if there != here:
            raise UserError(f"{source}: '{name}' is {there} there and {here} in {what}")
    module.load_state_dict(tensors)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """safetensors' `save_file`, but raising OSError (disk full, …), and with the mode that new files usually have."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, {"format": "pt"})  # replaces the file by one that its owner alone may read
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(mode)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"weights {path}: damaged, or no safetensors file ({_first_line(error)})") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for '{asked[1]}'" if asked else "it is no torch file, or damaged"
        raise UserError(f"weights {path}: refused, {reason}; only tensors and plain containers are read") from error
    except Exception as error:  # a hostile or cut file may raise anything; none of it is a bug of ours
        raise UserError(f"weights {path}: damaged, or no torch file ({type(error).__name__})") from error


def _wraps(found: Mapping[Any, Any], key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
