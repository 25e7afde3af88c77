"""In which options recipes differ."""

import json
from collections.abc import Mapping
from typing import Any

Leaves = dict[str, Any]


def flatten(tree: Mapping[str, Any], above: str = "") -> Leaves:
    """`{"mask": {"ratio": 0.75}}` as `{"mask.ratio": 0.75}`; lists are values."""
    leaves: Leaves = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return leaves


def differing(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """`{option: {name: value}}` of the options that are not the same in all recipes, the seed left out.

    A role's options stand together. recipes: resolved ones, by name. A recipe whose components lack an option has no value there.
    """
    leaves = {name: flatten(tree) for name, tree in recipes.items()}
    known = dict.fromkeys(key for one in leaves.values() for key in one if key != "seed")
    sections = list(dict.fromkeys(_section(option) for option in known))
    options = sorted(known, key=lambda option: sections.index(_section(option)))
    written = {
        option: {name: _write(one[option]) for name, one in leaves.items() if option in one} for option in options
    }
    return {
        option: values
        for option, values in written.items()
        if len(values) < len(leaves) or len(set(values.values())) > 1
    }


def _section(option: str) -> str:
    return option.partition(".")[0]


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
