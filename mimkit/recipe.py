"""A recipe: everything that determines a run, checked and complete."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimkit import strict_yaml
from mimkit.geometry import Size
from mimkit.overrides import MAIN, OBJECTIVE_ROLES
from mimkit.settings import BatchSettings, OptimSettings, ProbeSettings, TrainSettings


@dataclass(frozen=True)
class Choice:
    """A component by name, with all its options."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class ObjectiveChoice:
    """What one objective is made of.

    head: None where it takes the `prediction` of another objective: its name, or NAME.PART for one that its head names.
    weight: multiplies the loss; if `adaptive`, after it is made as strong as all others.
    """

    head: Choice | None
    target: Choice
    normalizer: Choice
    loss: Choice
    weight: float = 1.0
    adaptive: bool = False
    prediction: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run, checked and complete. The objective that is written flat is named `main`."""

    method: str
    image_size: Size
    encoder: Choice
    mask: Choice
    objectives: dict[str, ObjectiveChoice]
    data: Choice
    batches: BatchSettings
    optim: OptimSettings
    train: TrainSettings
    probe: ProbeSettings
    seed: int

    def to_yaml(self) -> str:
        """The recipe as YAML that `load_recipe` reads back as an equal recipe."""
        values = asdict(self)
        tree: dict[str, Any] = {key: values[key] for key in ("method", "image_size")}
        tree |= {role: _tree(getattr(self, role)) for role in ("encoder", "mask")}
        tree |= _objectives_tree(self.objectives)
        tree["data"] = _tree(self.data) | values["batches"]
        tree |= {key: values[key] for key in ("optim", "train", "probe", "seed")}
        return strict_yaml.dump(lists(tree))


def _tree(choice: Choice) -> dict[str, Any]:
    return {"name": choice.name, **choice.options}


def _objectives_tree(objectives: Mapping[str, ObjectiveChoice]) -> dict[str, Any]:
    trees = {name: _objective_tree(one) for name, one in objectives.items()}
    main = {role: value for role, value in trees.pop(MAIN, {}).items() if role in OBJECTIVE_ROLES}
    return main | ({"objectives": trees} if trees else {})


def _objective_tree(one: ObjectiveChoice) -> dict[str, Any]:
    parts = {role: _tree(choice) for role in OBJECTIVE_ROLES if (choice := getattr(one, role)) is not None}
    source = {} if one.prediction is None else {"prediction": one.prediction}
    return source | parts | {"weight": one.weight, "adaptive": one.adaptive}


def lists(value: Any) -> Any:
    """Tuples as lists, paths as text, so that YAML can hold them."""
    if isinstance(value, Mapping):
        return {str(key): lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [lists(item) for item in value]
    return str(value) if isinstance(value, Path) else value
