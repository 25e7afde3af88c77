"""The options of `mimkit eval`: `pool=cls`, `data=./photos`, `knn.k=10`, checked like a recipe's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt

from mimkit import overrides, registry, schema, strict_yaml
from mimkit.data.kinds import kind_of
from mimkit.draft import shipped_settings
from mimkit.errors import UserError, nearest
from mimkit.evaluate.attentive import Attentive
from mimkit.evaluate.attentive_sgd import AttentiveSgd
from mimkit.evaluate.finetune.probe import Finetune
from mimkit.evaluate.frozen import Frozen, Pool, Score
from mimkit.evaluate.knn import Knn
from mimkit.evaluate.layers import Layers
from mimkit.evaluate.linear import Linear
from mimkit.evaluate.linear_lars import LinearLars
from mimkit.evaluate.segment.probe import Segment
from mimkit.recipe import Choice
from mimkit.settings import BatchSettings

Probe = Callable[[Frozen], Score]
PROBES: dict[str, Callable[..., Probe]] = {
    "knn": Knn,
    "linear": Linear,
    "linear_lars": LinearLars,
    "layers": Layers,
    "attentive": Attentive,
    "attentive_sgd": AttentiveSgd,
    "finetune": Finetune,
    "segment": Segment,
}
OF_IMAGES = {"pool", "bank", "queries"}  # settings by which scores differ
WITHOUT_LABELS = {"segment"}  # probes that bring images of their own
BESIDE_WEIGHTS = {"finetune", "segment"}  # probes that keep files beside the weights
OF_ENCODERS = {"layers", "finetune", "segment"}  # probes that need an encoder's blocks or weights, not features alone


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What stands for an image, and where the work is done.

    pool: what knn, linear and linear_lars see of an image: the mean of its patch tokens, or its class token.
    device: auto is a GPU where there is one.
    bank: most training images that are fitted to, evenly spread over them; null is all.
    queries: most test images that are scored, evenly spread; null is all.
    cache: folder that keeps the features; null is features/ beside the weights.
    of: what is scored: the run's encoder, or the frozen network that gave its target (not for layers, finetune, segment).
    """

    pool: Pool = "mean"
    bank: Annotated[int, Gt(1)] | None = None
    queries: Annotated[int, Gt(0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache: str | None = None
    of: Literal["encoder", "target"] = "encoder"


@dataclass(frozen=True)
class Order:
    """What was asked for: the settings, the probes by name, and the labelled images; None where no probe reads them."""

    settings: EvalSettings
    probes: dict[str, Probe]
    data: Choice | None


def read_order(folder: Path, probes: Sequence[str], given: Sequence[str], settings_file: str | None = None) -> Order:
    """Check the probes' names and all options; the data are those of the run in `folder` unless they are named.

    settings_file: YAML that holds options, its path or the name of one that is shipped; `given` ones go before it.
    Raises UserError with one line per mistake.
    """
    for number, name in enumerate(probes):
        if name not in PROBES:
            known = ", ".join(PROBES)
            raise UserError(f"--probe: there is no probe '{name}'{nearest(name, PROBES) or ';'} Known: {known}")
        if name in probes[:number]:
            raise UserError(f"--probe: '{name}' is named twice")
    labels = not WITHOUT_LABELS.issuperset(probes)
    tree, places = _run_data(folder) if labels else ({}, {})
    if settings_file is not None:
        _add_settings(tree, places, settings_file)
    overrides.apply(tree, places, given)
    if labels and "data" not in tree:
        raise UserError(f"{folder} holds weights without a run's recipe.yaml: name labelled images with data=PATH")
    problems: list[str] = []

    def place(*path: str) -> str:
        near = (place for known, place in places.items() if known[:1] == path[:1])
        return places.get(path) or next(near, "eval")

    def checked(
        component: Callable[..., Any],
        options: Any,
        what: str,
        path: tuple[str, ...],
        facts: Any = frozenset(),
        also: Any = (),
    ) -> Any:
        if not isinstance(options, dict):
            problems.append(f"{place(*path)}: {what} takes options, {path[0]}.NAME=VALUE")
            return {}
        values, found = schema.check(component, options, what, lambda name: place(*path, name), facts, also)
        problems.extend(found)
        return values

    own = {key: value for key, value in tree.items() if key != "data" and key not in probes}
    for key in [key for key in own if key in PROBES]:
        problems.append(f"{place(key)}: --probe does not name '{key}', so it does not run")
        del own[key]
    settings = checked(EvalSettings, own, "eval", (), also=("data", *PROBES))
    options = {name: checked(PROBES[name], tree.get(name, {}), f"probe '{name}'", (name,)) for name in probes}
    data: Choice | None = None
    if labels:
        source = {"name": "shapes", **tree["data"]}
        name = str(source.pop("name"))
        facts = registry.ROLES["data"].facts | (set() if name in registry.names("data") else {"path"})
        images = checked(registry.find("data", kind_of(name)), source, f"data '{name}'", ("data",), facts)
        data = Choice(name, images)
    elif "data" in tree:
        problems.append(f"{place('data')}: {probes[0]} reads no labelled images; it takes {probes[0]}.data=FOLDER")
    if problems:
        raise UserError("\n".join(problems))
    return Order(EvalSettings(**settings), {name: PROBES[name](**values) for name, values in options.items()}, data)


def _run_data(folder: Path) -> tuple[dict[str, Any], dict[strict_yaml.Path, str]]:
    """The images that the run in `folder` was trained on, and where its recipe says so; nothing where it is no run."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return {}, {}
    tree, places = strict_yaml.read(recipe.read_text(encoding="utf-8"), str(recipe))
    batches = registry.options(BatchSettings)
    data = {key: value for key, value in tree["data"].items() if key not in batches}  # a run's recipe is complete
    return {"data": data}, {path: place for path, place in places.items() if path[:1] == ("data",)}


def _add_settings(tree: dict[str, Any], places: dict[strict_yaml.Path, str], source: str) -> None:
    """Put what a file of settings says in place of what is there. Raises UserError where there is no such file."""
    told, where = strict_yaml.read_file(source, shipped_settings(), "fine-tuning settings")
    for path in [path for path in places if path[:1] == ("data",) and "data" in told]:
        del places[path]
    tree |= told | ({"data": {"name": told["data"]}} if isinstance(told.get("data"), str) else {})
    places |= where
