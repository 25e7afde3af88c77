"""A run's folder: what is written where. Layout: docs and `mimkit train --help`."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mimkit
from mimkit import runs
from mimkit.disk import read_json_lines, write_text
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.recipe import Recipe

FREE_ON_RESUME = {  # what may differ when a run goes on: it changes no number of the training
    ("data", "workers"),
    *(("train", key) for key in ("checkpoint_every", "keep_checkpoints", "log_every", "pictures_every", "device")),
    *(("probe", key) for key in ("every", "k", "temperature", "bank", "queries")),
}


def choose_folder(out: Path | None, method: str, resume: bool) -> Path:
    """The run's folder: `out`, or runs/<method>-<n>: the next free number, or with `resume` the highest there is.

    Raises UserError where a run would be overwritten, or none is there to resume.
    """
    if out is None:
        taken = runs.numbers(method)
        if resume and not taken:
            raise UserError(f"--resume: no run runs/{method}-N to resume; name one with --out")
        number = (taken[-1] if resume else taken[-1] + 1) if taken else 1
        out = runs.folder(method, number)
    exists = (out / "recipe.yaml").is_file()
    if resume and not exists:
        raise UserError(f"--resume: {out} holds no run (no recipe.yaml in it)")
    if not resume and exists:
        raise UserError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: {parent} is not a folder that can be written to")
    return out


def begin_folder(recipe: Recipe, folder: Path) -> None:
    """Make the run's folder with its recipe and environment. Raises UserError where it cannot be written."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "pictures").mkdir(exist_ok=True)
        write_text(folder / "environment.json", json.dumps(environment(recipe.seed), indent=1))
        write_text(folder / "recipe.yaml", recipe.to_yaml())
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error


def check_same(recipe: Recipe, folder: Path) -> None:
    """Raise UserError unless the recipe is the one that the run in `folder` was started with."""
    started = _leaves(load_recipe(folder / "recipe.yaml"))
    given = _leaves(recipe)
    differ = [
        f"{'.'.join(path)}={given.get(path)} (run: {started.get(path)})"
        for path in sorted(started.keys() | given.keys())
        if started.get(path) != given.get(path) and path not in FREE_ON_RESUME
    ]
    if differ:
        raise UserError(f"--resume: the recipe differs from the one {folder} was started with: {'; '.join(differ)}")


def _leaves(recipe: Recipe) -> dict[tuple[str, ...], Any]:
    from mimkit import strict_yaml

    def walk(value: Any, path: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
        if not isinstance(value, dict):
            return {path: value}
        return {leaf: item for key, inner in value.items() for leaf, item in walk(inner, (*path, key)).items()}

    return walk(strict_yaml.read(recipe.to_yaml(), "recipe")[0], ())


def environment(seed: int) -> dict[str, Any]:
    """Versions, hardware, command and commit, as they go into environment.json."""
    import torch

    packages = ("torch", "torchvision", "timm", "numpy", "safetensors")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(mimkit.__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "mimkit": mimkit.__version__,
        "commit": commit or None,
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an unfinished last line is left out."""
    path = folder / "metrics.jsonl"
    return read_json_lines(path) if path.is_file() else []


class BadFiles:
    """bad_files.jsonl: each unreadable image once, with the reason, over all resumes."""

    def __init__(self, folder: Path):
        self.path = folder / "bad_files.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.seen = {json.loads(line)["file"] for line in lines if line.endswith("}")}

    def note(self, file: str, reason: str) -> None:
        """Append a file that is not yet listed."""
        if file not in self.seen:
            self.seen.add(file)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"file": file, "reason": reason}) + "\n")
