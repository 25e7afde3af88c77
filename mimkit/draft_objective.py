"""From what a recipe says of one objective to an `ObjectiveChoice`; mistakes are noted in the draft."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mimkit import overrides, registry, schema, strict_yaml
from mimkit.overrides import OBJECTIVE_ROLES
from mimkit.recipe import ObjectiveChoice

if TYPE_CHECKING:
    from mimkit.draft import Draft

VALUES = {"prediction": str, "weight": float, "adaptive": bool}  # of objectives below the top
DEFAULTS = {"prediction": None, "weight": 1.0, "adaptive": False}


def draft_objective(draft: "Draft", path: strict_yaml.Path) -> ObjectiveChoice | None:
    """Normalizer and loss fall back to the target's own defaults."""
    section = overrides.section(draft.tree, path)
    if path:
        for key in section.keys() - {*OBJECTIVE_ROLES, *VALUES}:
            takes = f"It takes: {', '.join((*OBJECTIVE_ROLES, *VALUES))}."
            draft.problems.append(f"{draft.place((*path, key))}: an objective has no key '{key}'; {takes}")
    values = {key: _value(draft, path, key, kind, section) for key, kind in VALUES.items()}
    prediction = values["prediction"] if path else None
    target = draft.choice("target", (*path, "target"))
    head = None if prediction else draft.choice("head", (*path, "head"))
    if prediction:
        _check_prediction(draft, path, prediction, section)
    if target is None or (head is None and not prediction):
        return None
    component: Any = registry.find("target", target.name)
    normalizer = draft.choice("normalizer", (*path, "normalizer"), component.normalizer)
    loss = draft.choice("loss", (*path, "loss"), component.loss)
    if normalizer is None or loss is None:
        return None
    return ObjectiveChoice(head, target, normalizer, loss, values["weight"], values["adaptive"], prediction)


def _value(draft: "Draft", path: strict_yaml.Path, key: str, kind: Any, section: Mapping[str, Any]) -> Any:
    """A plain value of an objective below the top, or its default."""
    if not path or key not in section:
        return DEFAULTS[key]
    try:
        return schema.typed(section[key], kind)
    except ValueError as error:
        draft.problems.append(f"{draft.place((*path, key))}: {key} {error}")
        return DEFAULTS[key]


def _check_prediction(draft: "Draft", path: strict_yaml.Path, prediction: str, section: Mapping[str, Any]) -> None:
    """Note a prediction of an objective that is not there before this one, or beside a head."""
    place, names = draft.place((*path, "prediction")), list(draft.objective_paths())
    before = names[: names.index(path[-1])]
    if "head" in section:
        draft.problems.append(f"{place}: an objective has a head or a prediction of another objective, not both")
    if prediction.partition(".")[0] not in before:
        draft.problems.append(f"{place}: prediction '{prediction}' is of no earlier objective: {', '.join(before)}")
