"""YAML without surprises: 1.2 scalars (`1e-4` is a float, `on` a string), no duplicate keys, tags, anchors or aliases."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from mimkit.errors import UserError, nearest

Path = tuple[str, ...]

_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


def read(text: str, name: str) -> tuple[dict[str, Any], dict[Path, str]]:
    """A mapping, and for the path of each of its entries where it stands: `("mask", "ratio") -> "mae.yaml:9"`.

    Raises UserError with `name:line` for anything that is not plain YAML 1.2 or not a mapping.
    """
    places: dict[Path, str] = {}
    try:
        values = _plain(_compose(text, name), (), name, places)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError(f"{name}: nested too deeply") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: a recipe is a mapping of keys to values")
    return values, places


def read_file(
    source: str | pathlib.Path, known: Mapping[str, pathlib.Path], what: str
) -> tuple[dict[str, Any], dict[Path, str]]:
    """The mapping in a YAML file, given by its path or as one of the `known` names, and where each part of it stands.

    what: names the file in messages. Raises UserError where there is none, and where it is no plain YAML.
    """
    path = pathlib.Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        if str(source) not in known:
            raise UserError(
                f"no {what} '{source}'{nearest(str(source), known)} Shipped: {', '.join(known)}; or give a path"
            )
        path = known[str(source)]
    if not path.is_file():
        raise UserError(f"{what} {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from error
    return read(text, str(path))


def scalar(text: str) -> Any:
    """The value of a plain YAML 1.2 scalar: null, a bool, an int, a float, else the text itself."""
    if text.lower() in _WORDS and text in (text.lower(), text.capitalize(), text.upper()):
        return _WORDS[text.lower()]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def dump(values: dict[str, Any]) -> str:
    """YAML text that `read` reads back as `values`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes floats as YAML 1.2 reads them, and quotes only what `scalar` would read as something else."""


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    quoted = not isinstance(scalar(value), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if quoted else None)


_Dumper.add_representer(str, _represent_str)


def _compose(text: str, name: str) -> yaml.Node:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{name}:{line}: anchors and aliases are not allowed in a recipe")
        if getattr(event, "tag", None) not in (None, "!"):
            raise UserError(f"{name}:{line}: tags are not allowed in a recipe")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        raise UserError(f"{name}: the recipe is empty")
    return node


def _plain(node: yaml.Node, path: Path, name: str, places: dict[Path, str]) -> Any:
    places[path] = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(number)), name, places) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if node.style is None else node.value
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise UserError(f"{name}:{line}: a key must be a plain word")
        if key in values:
            first = places[(*path, key)].rpartition(":")[2]
            raise UserError(f"{name}:{line}: key '{key}' is given twice, first in line {first}")
        values[key] = _plain(value_node, (*path, key), name, places)
        places[(*path, key)] = f"{name}:{line}"
    return values
