"""What the commands share: arguments, and what is done before any work."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mimkit.errors import UserError


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Add the components of the files given with --plugin."""
    if paths:
        from mimkit import registry

        for path in paths:
            registry.load_plugin(path)
    return paths


Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's path, or the name of one that is shipped.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data=./photos or optim.lr=3e-4."),
]
Plugin = Annotated[  # loaded before the command begins
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Adds the components of a file.", callback=_load_plugins),
]
Weights = Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run's folder, or an encoder.safetensors.")]


def check_writable(path: Path, is_folder: bool = False, option: str = "-o") -> None:
    """Raise UserError, before any work is done, where `path`, a file or a folder, could not be written.

    option: what gives it, for messages.
    """
    if path.exists() and path.is_dir() is not is_folder:
        wanted = "file; a folder" if is_folder else "folder; a file"
        raise UserError(f"{option} {path}: that is a {wanted} is written here")
    above = path.absolute().parents
    folder = next(each for each in ((path, *above) if is_folder else above) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: {folder} is not a folder that can be written to")
