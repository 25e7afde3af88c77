"""What lies at a path, told by extensions alone: without torch, so that a wrong path is told at once."""

from pathlib import Path

from mimkit import registry
from mimkit.data.files import EXTENSIONS, walk, what_lies_in
from mimkit.errors import UserError, nearest


def kind_of(path: str) -> str:
    """The source's name: `path` itself where it is one, else that of the source that reads what lies there.

    Raises UserError where nothing does.
    """
    if path in registry.names("data"):
        return path
    try:
        if Path(path).is_dir():
            kinds = (kind_of_file(file) for file in walk(path))
            kind = next((kind for kind in kinds if kind), None)
            if kind is None:
                raise UserError(f"no images in {path}: found {what_lies_in(path)}; read are {readable()}")
            return "folder" if kind == "array" else kind
        if not Path(path).exists():
            raise UserError(f"there is no data at '{path}'{near_miss(path)}")
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    kind = kind_of_file(path)
    if kind is None:
        raise UserError(f"{path} is not data that can be read; read are folders and {readable()}")
    return kind


def kind_of_file(path: str) -> str | None:
    """The source that a file's extension speaks of."""
    extension = Path(path).suffix.lower()
    if extension in EXTENSIONS:
        return "folder"
    return {".parquet": "parquet", ".npy": "array", ".npz": "array"}.get(extension)


def readable() -> str:
    """The extensions that are read."""
    return " ".join((*EXTENSIONS, ".npy .npz .parquet"))


def near_miss(path: str) -> str:
    """What the user may have meant: a sibling of the path, or a source's name."""
    parent = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    missing = Path(path).absolute().relative_to(parent).parts[0]
    here = [entry.name for entry in parent.iterdir()]
    guess = nearest(missing, here)
    if guess:
        return guess
    sources = registry.names("data")
    return nearest(path, sources) or f"; data takes a path or one of {', '.join(sources)}"
