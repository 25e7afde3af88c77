"""Finds components: a component's name is its module's name, its constructor's signature is its options' schema.

`targets/clip.py` holds the target `clip`, the one public class of that role in the file. Normalizers and losses, a few
lines each, share a file and are named by themselves. Third parties add theirs by entry points
(`mimkit.encoders|masks|heads|targets|normalizers|losses|data`) or by a file given with `--plugin`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from mimkit.errors import UserError, nearest


@dataclass(frozen=True)
class Role:
    """Where a role's components live, and which facts their constructors are given rather than asked for."""

    base: str  # name of the base class
    base_module: str
    home: str  # the package, or the one module, that holds the components
    group: str  # entry-point group
    facts: frozenset[str]


ROLES = {
    "encoder": Role("Encoder", "mimkit.types", "mimkit.encoders", "mimkit.encoders", frozenset({"image_size", "feed"})),
    "mask": Role("Masking", "mimkit.types", "mimkit.masks", "mimkit.masks", frozenset()),
    "head": Role(
        "Head", "mimkit.types", "mimkit.heads", "mimkit.heads",
        frozenset({"encoder_dim", "num_layers", "out_dim", "grid", "out_grid", "patch_size", "in_chans", "feed"}),
    ),
    "target": Role(
        "Target", "mimkit.types", "mimkit.targets", "mimkit.targets",
        frozenset({"image_size", "in_chans", "patch_size", "grid", "encoder", "repeats"}),
    ),
    "normalizer": Role("Normalizer", "mimkit.types", "mimkit.normalizers", "mimkit.normalizers", frozenset()),
    "loss": Role(
        "Loss", "mimkit.types", "mimkit.losses", "mimkit.losses",
        frozenset({"grid", "patch_size", "in_chans", "target"}),
    ),
    "data": Role(
        "Source", "mimkit.data.source", "mimkit.data.sources", "mimkit.data",
        frozenset({"image_size", "in_chans"}),
    ),
}  # fmt: skip

_plugins: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class Option:
    """One option of a component: an argument of its constructor."""

    name: str
    annotation: Any
    default: Any  # inspect.Parameter.empty where the user must give it
    doc: str


def names(role: str) -> list[str]:
    """The names of all components of a role, sorted."""
    return sorted({*_shipped(role), *_installed(role), *(name for of, name in _plugins if of == role)})


def find(role: str, name: str) -> type:
    """The component class of that name.

    Raises UserError for an unknown name (with the nearest and all known), and for a module that breaks the rule.
    """
    if (role, name) in _plugins:
        return _plugins[role, name]
    if name in _shipped(role):
        home = import_module(ROLES[role].home)
        return _component(role, import_module(f"{home.__name__}.{name}")) if _is_package(home) else getattr(home, name)
    if name in _installed(role):
        try:
            found = _installed(role)[name].load()
        except Exception as error:
            raise UserError(f"the installed {role} '{name}' cannot be imported: {error!r}") from error
        return _component(role, found) if isinstance(found, ModuleType) else found
    raise UserError(unknown(role, name))


def unknown(role: str, name: str) -> str:
    """What to say of a name that no component has."""
    hint = nearest(name, names(role)) or ";"
    return (
        f"unknown {role} '{name}'{hint} Known: {', '.join(names(role))}; a plug-in's component needs --plugin FILE.py."
    )


def written_options(role: str, name: str) -> list[str] | None:
    """Names of a component's options as its source text has them, without importing it (torch takes a second or two).

    None where the text does not tell: a plug-in, or a constructor that is inherited.
    """
    if name not in _shipped(role):
        return None
    home = ROLES[role].home
    one_each = _spec(home).submodule_search_locations is not None
    classes = _written_classes(f"{home}.{name}" if one_each else home)
    for part in next(iter(classes.values())).body if one_each else classes[name].body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return [each.arg for each in part.args.kwonlyargs if each.arg not in ROLES[role].facts]
    return None


def options(component: Callable[..., Any], facts: frozenset[str] = frozenset()) -> dict[str, Option]:
    """The options of a component: its constructor's arguments without the role's facts, with their docstring lines."""
    parameters = inspect.signature(component).parameters.values()
    text = inspect.getdoc(component) or ""
    return {
        p.name: Option(p.name, p.annotation, p.default, _doc_line(text, p.name))
        for p in parameters
        if p.name not in facts
    }


def build(role: str, name: str, given: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """Construct a component from its options and from those of the facts that its constructor asks for."""
    component = find(role, name)
    asked = inspect.signature(component).parameters.keys() & ROLES[role].facts
    return component(**{name: facts[name] for name in asked if name in facts}, **given)


def load_plugin(path: str | Path) -> None:
    """Add the components that a Python file defines, each under the file's name.

    Raises UserError where the file is missing, fails to import, defines none, or takes a name that exists.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"plug-in {path}: no such file")
    spec = spec_from_file_location(f"mimkit_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"plug-in {path}: not a Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its classes know their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = {role: classes for role in ROLES if (classes := _public_classes(role, module))}
    if not found:
        raise UserError(f"plug-in {path} defines no component; subclass mimkit.types.Target, Encoder, Head, Masking, …")
    for role in found:
        earlier = _plugins.get((role, path.stem))
        if path.stem in {*_shipped(role), *_installed(role)} or (
            earlier and inspect.getfile(earlier) != module.__file__
        ):
            raise UserError(f"plug-in {path}: a {role} named '{path.stem}' exists already; rename the file")
        _plugins[role, path.stem] = _component(role, module)


@cache
def _shipped(role: str) -> frozenset[str]:
    places = _spec(ROLES[role].home).submodule_search_locations
    if places is not None:
        return frozenset(module.name for module in iter_modules(places) if not module.name.startswith("_"))
    return frozenset(_written_classes(ROLES[role].home))


def _spec(module: str) -> ModuleSpec:
    spec = find_spec(module)
    assert spec is not None, module
    return spec


def _written_classes(module: str) -> dict[str, ast.ClassDef]:
    """The public classes of a module's source text, which is not run."""
    tree = ast.parse(Path(str(_spec(module).origin)).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


@cache
def _installed(role: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in entry_points(group=ROLES[role].group):
        if point.name in found or point.name in _shipped(role):
            raise UserError(f"two {role}s are named '{point.name}': {point.value} and another; uninstall one of them")
        found[point.name] = point
    return found


def _is_package(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def _public_classes(role: str, module: ModuleType) -> dict[str, type]:
    base = getattr(import_module(ROLES[role].base_module), ROLES[role].base)
    return {
        name: item
        for name, item in vars(module).items()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__ and name[0] != "_"
    }


def _component(role: str, module: ModuleType) -> type:
    classes = _public_classes(role, module)
    if len(classes) != 1:
        raise UserError(
            f"{module.__file__} must define one public subclass of {ROLES[role].base}, found: {', '.join(classes) or 'none'}"
        )
    return next(iter(classes.values()))


def _doc_line(text: str, option: str) -> str:
    """The docstring's line(s) on an option: `option: what it changes`, or `a, b: …`, with indented continuation."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        head, colon, rest = line.partition(":")
        if colon and not line.startswith(" ") and option in re.split(r",\s*", head.strip()):
            more = [cont.strip() for cont in lines[number + 1 :]]
            indented = [c.startswith(" ") for c in lines[number + 1 :]]
            return " ".join(
                [rest.strip(), *(m for m, i in zip(more, indented, strict=True) if i)][: 1 + _run(indented)]
            )
    return ""


def _run(flags: list[bool]) -> int:
    """Length of the run of True at the start."""
    return flags.index(False) if False in flags else len(flags)
