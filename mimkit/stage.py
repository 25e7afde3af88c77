"""A recipe with a component that needs another recipe's run names that recipe: `checkpoint: "recipe:vqkd"`."""

from collections.abc import Iterable
from typing import Any

from mimkit.overrides import OBJECTIVE_ROLES, Path, section

PREFIX = "recipe:"


def stages(tree: dict[str, Any], objectives: Iterable[Path]) -> dict[Path, str]:
    """The paths of the components' options that ask for a run, and the recipes of which; `objectives`: where they stand."""
    found = dict[Path, str]()
    for path in (("encoder",), *((*objective, role) for objective in objectives for role in OBJECTIVE_ROLES)):
        component = section(tree, path)
        for key, value in component.items() if isinstance(component, dict) else ():
            if isinstance(value, str) and value.startswith(PREFIX):
                found[*path, key] = value.removeprefix(PREFIX)
    return found
