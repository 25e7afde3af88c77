"""mimkit: an encoder reads a masked image, a head predicts, at the masked places, a normalised target."""

from importlib import import_module
from pathlib import Path
from typing import Any

# In a wheel `targets/` and `recipes/` lie inside the package; in a checkout they stand beside it.
if not (Path(__file__).parent / "targets").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

__version__ = "0.1.0"

_NAMES = {  # public name -> module; imported on first use, so that `mimkit --help` stays quick
    "Mask": "types",
    "Features": "types",
    "Output": "types",
    "UserError": "errors",
    "patchify": "types",
    "unpatchify": "types",
    "build": "model",
    "load": "saved.encoder",
    "load_official": "weights.official",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'mimkit' has no attribute {name!r}")
    return getattr(import_module(f"mimkit.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
