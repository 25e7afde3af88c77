"""What the commands share: arguments, and what is done before any work."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mimkit.errors import UserError

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's path, or the name of one that is shipped.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data=./photos or optim.lr=3e-4."),
]
Plugin = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE.py", help="Adds the components of a file.")
]
Weights = Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run's folder, or an encoder.safetensors.")]


def load_plugins(paths: list[Path] | None) -> None:
    """Add the components of the files given with --plugin."""
    if paths:
        from mimkit import registry

        for path in paths:
            registry.load_plugin(path)


def check_writable(path: Path, is_folder: bool = False) -> None:
    """Raise UserError, before any work is done, where `path`, a file or a folder, could not be written."""
    if path.exists() and path.is_dir() is not is_folder:
        raise UserError(f"-o {path}: that is a {'file; a folder' if is_folder else 'folder; a file'} is written here")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"-o {path}: {parent} is not a folder that can be written to")
