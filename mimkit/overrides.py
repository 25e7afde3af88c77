"""Overrides on the command line: `optim.lr=3e-4`, `target=clip`, `data=./photos`.

Swapping a component keeps what still has a meaning: an encoder, mask or head keeps the options that the new one also
takes; a target starts from its defaults, and so do its normalizer and loss, unless they are named too.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

from mimkit import registry, strict_yaml
from mimkit.errors import UserError
from mimkit.settings import BatchSettings

Path = strict_yaml.Path
MAIN = "main"  # the objective that is written flat
OBJECTIVE_ROLES = ("head", "target", "normalizer", "loss")
SWAPPED = ("encoder", "mask", *OBJECTIVE_ROLES, "data")
EITHER_OR: dict[Path, str] = {("optim", "lr"): "base_lr", ("optim", "base_lr"): "lr", ("train", "epochs"): "max_steps"}
EITHER_OR[("train", "max_steps")] = "epochs"


def apply(tree: dict[str, Any], places: dict[Path, str], given: Sequence[str]) -> None:
    """Change `tree` and `places` by overrides `key=value`; swaps first, so that their order does not matter.

    Raises UserError for text without `=` and for a key inside something that is not a mapping.
    """
    changes = [_parse(text) for text in given]
    named = {path for path, _, _ in changes}
    for swap in (True, False):
        for path, value, text in changes:
            if (path[-1] == "name") is swap:
                places[path] = f"override '{text}'"
                if swap:
                    _swap(tree, places, path[:-1], str(value), named)
                else:
                    _set(tree, places, path, value, text)


def section(tree: dict[str, Any], path: Path) -> Any:
    """What stands at `path`, or None."""
    value: Any = tree
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _parse(text: str) -> tuple[Path, Any, str]:
    key, equals, value_text = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise UserError(f"override '{text}' should be key=value, such as optim.lr=3e-4 or target=clip")
    path = tuple(key.split("."))
    if value_text[:1] in ("[", "{"):
        value = strict_yaml.read(f"value: {value_text}", f"override '{text}'")[0]["value"]
    else:
        value = strict_yaml.scalar(value_text)
    if path[-1] in SWAPPED and len(path) in (1, 3) and not isinstance(value, dict):
        path = (*path, "name")
    return path, value, text


def _swap(tree: dict[str, Any], places: dict[Path, str], path: Path, name: str, named: set[Path]) -> None:
    """Put component `name` at `path`."""
    role, parent = path[-1], section(tree, path[:-1])
    if role not in SWAPPED or not isinstance(parent, dict):
        raise UserError(f"override '{'.'.join(path)}={name}': a recipe has no component '{'.'.join(path)}'")
    old = parent.get(role)
    old = old if isinstance(old, dict) else {"name": old}
    kept = {key: value for key, value in old.items() if key != "name"}
    if old.get("name") != name:
        kept = {key: value for key, value in kept.items() if key in _kept(role, name)}
        if role == "target":
            for follower in ("normalizer", "loss"):
                if not any(change[: len(path)] == (*path[:-1], follower) for change in named):
                    parent.pop(follower, None)
    parent[role] = {"name": name, **kept}


def _kept(role: str, name: str) -> set[str]:
    """Options that survive a swap to component `name`."""
    if role == "data":
        return set(registry.options(BatchSettings))
    if role not in ("encoder", "mask", "head") or name not in registry.names(role):
        return set()
    return set(registry.options(registry.find(role, name), registry.ROLES[role].facts))


def _set(tree: dict[str, Any], places: dict[Path, str], path: Path, value: Any, text: str) -> None:
    parent: Any = tree
    for number, key in enumerate(path[:-1]):
        inner = parent.get(key)
        if isinstance(inner, str) and path[number] in SWAPPED:  # `mask: random` is short for `mask: {name: random}`
            inner = {"name": inner}
        if inner is None:
            inner = {}
            places[path[: number + 1]] = f"override '{text}'"
        if not isinstance(inner, dict):
            raise UserError(f"override '{text}': '{'.'.join(path[: number + 1])}' holds a value, not options")
        parent[key] = inner
        parent = inner
    parent[path[-1]] = value
    if value is not None:
        parent.pop(EITHER_OR.get(path, ""), None)
    for below in [place for place in places if place[: len(path)] == path]:
        del places[below]
    places[path] = f"override '{text}'"


def sweep(given: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of overrides whose values are lists without brackets: `mask.ratio=0.5,0.75` stands for two.

    The last one varies fastest; overrides without a comma are in every combination. `[a,b]` is one value.
    """
    return list(product(*(_values(text) for text in given)))


def _values(text: str) -> list[str]:
    key, equals, value = text.partition("=")
    if not equals or value[:1] in ("[", "{"):
        return [text]
    return [f"{key}={each}" for each in value.split(",")]
