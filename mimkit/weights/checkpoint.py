"""Checkpoints that are whole or absent: written beside, fsynced, renamed, and verified by a manifest when read.

`checkpoints/step-00001234/` holds model.safetensors, optimizer.safetensors, state.json and manifest.json (size and
sha256 of each); the file `checkpoints/last` names the newest. No pickle is written or read.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mimkit.disk import fsync, write_text
from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.weight_files import save_tensors


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint of `step` under `folder`, then drop all but the `keep` newest. Raises OSError (disk full, …).

    optimizers: each of parameters of its own.
    """
    final = folder / f"step-{step:08d}"
    if not final.exists():  # one that exists was verified at the start, and equals this one
        beside = folder / f".writing-{final.name}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_tensors(beside / "model.safetensors", _contiguous(_own_state(model)))
        save_tensors(beside / "optimizer.safetensors", _contiguous(_optimizer_tensors(model, optimizers)))
        (beside / "state.json").write_text(json.dumps({"step": step, **state}))
        manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in beside.iterdir():
            fsync(path)
        fsync(beside)
        beside.rename(final)
    write_text(folder / "last", final.name + "\n")
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old)


def restore(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any] | None:
    """Load the newest checkpoint whose manifest verifies and give its state; None where there is none.

    Damaged checkpoints and unfinished writes are removed on the way. Raises UserError where shapes or names differ.
    """
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for path in _folders(folder):
        if _verified(path):
            load_model(path, model)
            _load_optimizers(load_file(path / "optimizer.safetensors"), model, optimizers)
            state: dict[str, Any] = json.loads((path / "state.json").read_text())
            return state
        shutil.rmtree(path)
    return None


def newest(folder: Path) -> Path:
    """The newest checkpoint under `folder` that verifies. Raises UserError where there is none."""
    for path in _folders(folder):
        if _verified(path):
            return path
    raise UserError(f"{folder} holds no readable checkpoint")


def load_model(path: Path, model: nn.Module) -> None:
    """Load the model's weights from the checkpoint at `path`. Raises UserError where shapes or names differ."""
    saved, ours = load_file(path / "model.safetensors"), _own_state(model)
    sizes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (saved, ours)]
    differ = sorted(name for name in saved.keys() | ours.keys() if sizes[0].get(name) != sizes[1].get(name))
    if differ:
        there, here = (side.get(differ[0], "absent") for side in sizes)
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise UserError(f"checkpoint {path}: '{differ[0]}' is {there} there and {here} in this recipe{more}")
    model.load_state_dict(saved, strict=False)  # what is not there are frozen targets


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must hold: of a `Model` without the targets that stay as they were built."""
    return model.own_state() if isinstance(model, Model) else model.state_dict()


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verified(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return bool(manifest) and all(_fingerprint(path / name) == seen for name, seen in manifest.items())
    except (OSError, ValueError):
        return False


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state under `parameter name|entry`."""
    return {
        f"{name}|{entry}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizers(saved: dict[str, Tensor], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    named = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, value in saved.items():
        name, entry = key.rsplit("|", 1)
        parameter = named[name]
        device = parameter.device if entry != "step" or parameter.is_cuda else "cpu"
        owner[parameter].state[parameter][entry] = value.to(device, copy=True)  # not the mapped file
