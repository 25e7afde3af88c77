"""Checks given options against a signature: names, types, ranges. The signature of a component is its options' schema."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mimkit import registry
from mimkit.errors import UserError, nearest


def check(
    component: Callable[..., Any],
    given: Mapping[str, Any],
    what: str,
    place: Callable[[str], str],
    facts: frozenset[str] = frozenset(),
    also: tuple[str, ...] = (),
) -> tuple[dict[str, Any], list[str]]:
    """All options of `component` with defaults filled in, and one line for each mistake in `given`.

    what: names the component in messages. place: where an option stands (`mae.yaml:9`). also: further accepted names.
    """
    known = registry.options(component, facts)
    values: dict[str, Any] = {}
    problems = []
    for name, value in given.items():
        if name not in known:
            problems.append(no_option(place(name), what, name, [*known, *also]))
            continue
        try:
            values[name] = typed(value, known[name].annotation)
        except ValueError as error:
            problems.append(f"{place(name)}: {what}, option '{name}': {error}, got {json.dumps(value)}")
    for name, option in known.items():
        if name not in given:
            if option.default is inspect.Parameter.empty:
                problems.append(f"{place(name)}: {what} needs the option '{name}': {option.doc}")
            else:
                values[name] = option.default
    return {name: values[name] for name in known if name in values}, problems


def construct(role: str, name: str, given: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> Any:
    """A component from options that the file `source` holds. Raises UserError where there is none, or no such option."""
    known = registry.ROLES[role].facts
    values, problems = check(registry.find(role, name), given, f"{role} '{name}'", lambda _: source, known)
    if problems:
        raise UserError(problems[0])
    return registry.build(role, name, values, facts)


def no_option(place: str, what: str, name: str, known: Sequence[str]) -> str:
    """What to say of an option that `what` does not have."""
    takes = ", ".join(known) or "no options"
    return f"{place}: {what} has no option '{name}'{nearest(name, known) or ';'} It takes: {takes}."


def typed(value: Any, annotation: Any) -> Any:
    """`value`, as YAML gives it, as a value of the annotated type: lists become tuples, integers floats; nothing else bends.

    Raises ValueError saying what would be right.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        messages = [e["msg"].removeprefix("Input should be ").removeprefix("Input ") for e in error.errors()]
        unique = list(dict.fromkeys(m for m in messages if m != "None")) or messages
        raise ValueError("should be " + " or ".join(unique)) from error
