"""A recipe whose target needs another recipe's run names that recipe: `target: {name: vq, checkpoint: "recipe:vqkd"}`."""

from collections.abc import Iterable
from typing import Any

from mimkit.overrides import Path, section

PREFIX = "recipe:"


def stages(tree: dict[str, Any], objectives: Iterable[Path]) -> dict[Path, str]:
    """The paths of the targets' options that ask for a run, and the recipes of which; `objectives`: where they stand."""
    found = dict[Path, str]()
    for objective in objectives:
        target = section(tree, (*objective, "target"))
        for key, value in target.items() if isinstance(target, dict) else ():
            if isinstance(value, str) and value.startswith(PREFIX):
                found[*objective, "target", key] = value.removeprefix(PREFIX)
    return found
