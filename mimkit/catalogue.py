"""What `mimkit list` prints: roles, components, options."""

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from mimkit import registry
from mimkit.draft import shipped, shipped_settings
from mimkit.errors import UserError, nearest


def lines(role: str | None = None) -> Iterator[str]:
    """Every component of a role, or of all, with its options; then the recipes and the fine-tuning settings.

    Raises UserError for an unknown role.
    """
    if role is not None and role not in (*registry.ROLES, "recipe"):
        roles = [*registry.ROLES, "recipe"]
        raise UserError(f"no role '{role}'{nearest(role, roles)} Roles: {', '.join(roles)}")
    for each in [role] if role else registry.ROLES:
        if each in registry.ROLES:
            yield from _role(each)
    if role in (None, "recipe"):
        yield "RECIPES"
        yield from _files(shipped())
        yield ""
        yield "FINE-TUNING SETTINGS"
        yield from _files(shipped_settings())


def _files(paths: Mapping[str, Path]) -> Iterator[str]:
    for name, path in paths.items():
        about = takewhile(lambda line: not line.startswith("# Run:"), path.read_text(encoding="utf-8").splitlines())
        yield f"  {name:29} {' '.join(line.lstrip('# ') for line in about)}"


def _role(role: str) -> Iterator[str]:
    yield {"data": "DATA", "loss": "LOSSES"}.get(role, f"{role.upper()}S")
    for name in registry.names(role):
        component = registry.find(role, name)
        about = (inspect.getdoc(component) or "").splitlines()
        yield f"  {name:15} {about[0] if about else ''}"
        yield from (f"      {line}" for line in about if line.startswith("Goes with:"))
        for option in registry.options(component, registry.ROLES[role].facts).values():
            required = option.default is inspect.Parameter.empty
            default = "required" if required else f"= {_value(option.default)}"
            yield f"      {option.name}: {_type(option.annotation)} {default}"
            if option.doc:
                yield f"          {option.doc}"
    yield ""


def _value(value: Any) -> str:
    """A default as a recipe would write it."""
    if isinstance(value, tuple):
        return str([*value])
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: Any) -> str:
    """A type in short: `int > 0`, `visible | all`, `float | null`."""
    text = str(annotation) if not isinstance(annotation, type) else annotation.__name__
    text = re.sub(r"(typing|annotated_types)\.", "", text)
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | null", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda m: m[1].replace("'", "").replace(", ", " | "), text)
    text = re.sub(r"MultipleOf\(multiple_of=(\d+)\)", r"multiple of \1", text)
    text = re.sub(r"G[te]\(g[te]=([^)]*)\)|L[te]\(l[te]=([^)]*)\)", _bound, text)
    return re.sub(r"Annotated\[(\w+), ([^\]]*)\]", r"\1 \2", text).replace("None", "null").replace("NoneType", "null")


def _bound(match: re.Match[str]) -> str:
    sign = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}[match[0][:2]]
    return f"{sign} {match[1] or match[2]}"
