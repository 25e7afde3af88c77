"""Which runs of an earlier bench still hold: those of the same recipe, images and code. Nothing is ever deleted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from itertools import count
from pathlib import Path

import mimkit
from mimkit.disk import write_text

NO_NUMBERS = ("compare", "show", "drawing")  # rooms whose code changes no score


def code_version(plugins: Sequence[Path]) -> str:
    """Changes with the code that trains and scores: the package's and the plug-ins'."""
    seen = sha256()
    for root in (Path(mimkit.__file__).parent, *map(Path, import_module("mimkit.targets").__path__)):
        for path in sorted(root.rglob("*.py")):
            if path.relative_to(root).parts[0] not in NO_NUMBERS:
                seen.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    for plugin in plugins:
        seen.update(plugin.read_bytes())
    return f"mimkit {mimkit.__version__}, code {seen.hexdigest()[:12]}"


def folder_of(row: str, seed: int, room: str = "runs") -> Path:
    """Where a row's run lies in the bench's folder."""
    return Path(room, row.replace("/", "_").replace(" ", "_"), f"seed-{seed}")


def plan_of(folder: Path) -> Path:
    """The file that says what is to be in a run's folder; beside it, so that it is there before the run."""
    return folder.with_name(f"{folder.name}.yaml")


def claim(folder: Path, text: str, old: Path) -> None:
    """Write what is to be in `folder`. What a bench has there is moved into `old` where it is of something else, or where
    the kill came before its recipe was written.
    """
    plan = plan_of(folder)
    begun = not folder.exists() or (folder / "recipe.yaml").is_file()
    if plan.is_file() and not (begun and plan.read_text(encoding="utf-8") == text):
        free = next(place for n in count(1) if not (place := old / f"{folder.parent.name}_{folder.name}-{n}").exists())
        free.mkdir(parents=True)
        for path in (plan, folder, log_of(folder)):
            if path.exists():
                path.rename(free / path.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(plan, text)


def log_of(folder: Path) -> Path:
    """What the process at work on a run's folder prints; beside it until the process ends."""
    return folder.with_name(f"{folder.name}.log")


@contextmanager
def logged(folder: Path) -> Iterator[Path]:
    """The log of a piece of work; afterwards it stands at the end of the log.txt in the run's folder, if there is one."""
    log = log_of(folder)
    try:
        yield log
    finally:
        if folder.is_dir() and log.is_file():
            with (folder / "log.txt").open("ab") as whole:
                whole.write(log.read_bytes())
            log.unlink()
