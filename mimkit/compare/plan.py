"""What a bench compares: recipes, each with the overrides that concern it, all on the same images."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mimkit import overrides, registry
from mimkit.draft import Draft, read
from mimkit.errors import UserError, nearest
from mimkit.overrides import SWAPPED, section, sweep
from mimkit.recipe import Recipe, lists
from mimkit.settings import BatchSettings

PRACTICAL = {"batch_size", "workers", "max_bad"}  # what of `data` does not say which images are seen, and how
OWN = {"batch_size", "repeats", "views"}  # what of `data` belongs to a recipe's method
LENGTHS = ("train.epochs", "train.max_steps")


@dataclass(frozen=True)
class Variant:
    """A recipe with its overrides; its seed and its length are open.

    name: of its row. changes: those of its overrides that were swept.
    stages: for each option that asks for a run of another recipe, that recipe's variant.
    """

    name: str
    recipe: str
    changes: tuple[str, ...]
    draft: Draft
    stages: Mapping[overrides.Path, "Variant"]

    def checked(self, run_of: Callable[["Variant"], Path]) -> Recipe:
        """The recipe, its stages' runs where `run_of` says. Raises UserError."""
        tree = deepcopy(self.draft.tree)
        for path, stage in self.stages.items():
            section(tree, path[:-1])[path[-1]] = str(run_of(stage))
        return Draft(tree, self.draft.places).recipe()

    @property
    def reads_stage(self) -> bool:
        """Whether its encoder needs the run of a stage, so that it cannot be built before."""
        return any(path[0] == "encoder" for path in self.stages)

    @cached_property
    def placed(self) -> Recipe:
        """The recipe where it does not matter where its stages' runs are. Raises UserError."""
        return self.checked(lambda stage: Path(stage.name))


class Plan:
    """Sorts a command's words, `RECIPE`, `key=value` and `RECIPE:key=value`, into the variants that they ask for.

    variants: one a row. notes: what was changed to make them alike.
    takers: the recipes that have the option of an override, by the word that gives it.
    Raises UserError for every mistake in a recipe or an override.
    """

    def __init__(self, words: Sequence[str]):
        named = [word for word in words if "=" not in word]
        self.sources = {label(source): source for source in named}
        if not named:
            raise UserError("no recipe is named; such as: mimkit bench mae simmim data=./photos")
        if len(self.sources) < len(named):
            raise UserError(f"two of {', '.join(named)} have the same name: name a recipe once, or rename its file")
        self.first = read(named[0])
        given = [word for word in words if "=" in word]
        self.general = [text for text in given if ":" not in key_of(text)]
        self.own = [text for text in given if ":" in key_of(text)]
        self.takers: dict[str, list[str]] = {text: [] for text in given}
        self.notes: list[str] = []
        self._made = dict[str, Variant]()
        self.variants = [variant for name in tuple(self.sources) for variant in self._variants(name)]
        self._check()

    @property
    def applies(self) -> dict[str, list[str]]:
        """For each override that some recipe cannot take, the recipes that take it."""
        return {text: self.takers[text] for text in self.general if len(self.takers[text]) < len(self.sources)}

    def _variants(self, name: str) -> list[Variant]:
        """One for each combination of the swept overrides that concern the recipe."""
        given = self._given(name)
        swept = [word for word, text in given.items() if is_swept(text)]
        made = [
            self._variant(name, dict(zip(given, combination)), swept) for combination in sweep(list(given.values()))
        ]
        return list({variant.name: variant for variant in made}.values())

    def _stage(self, source: str) -> Variant:
        """The variant of a recipe that another one asks for a run of: with the overrides that are not swept."""
        name = label(source)
        self.sources.setdefault(name, source)
        return self._variant(name, {word: text for word, text in self._given(name).items() if not is_swept(text)}, ())

    def _given(self, name: str) -> dict[str, str]:
        """The overrides for all, then the recipe's own, by the words that give them."""
        own = {word: word.partition(":")[2] for word in self.own if word.startswith(f"{name}:")}
        return {word: word for word in self.general} | own

    def _variant(self, name: str, given: Mapping[str, str], swept: Sequence[str]) -> Variant:
        """One variant, on the first recipe's images.

        given: overrides with one value each, by the words that give them. swept: the words that give several values.
        """
        tree, _ = self._shared(name)
        overrides.apply(tree, {}, list(given.values()))
        taken = {word: text for word, text in given.items() if has_option(tree, key_of(text))}
        for word in taken:
            if name not in self.takers[word]:
                self.takers[word].append(name)
        changes = tuple(text for word, text in taken.items() if word in swept)
        full = " ".join([name, *changes])
        if full not in self._made:
            tree, places = self._shared(name)
            overrides.apply(tree, places, list(taken.values()))
            draft = Draft(tree, places)
            stages = {path: self._stage(source) for path, source in draft.stages().items()}
            self._made[full] = Variant(full, name, changes, draft, stages)
            self._made[full].checked(lambda stage: Path(stage.name))
            self._note_views(name, tree, list(taken.values()))
        return self._made[full]

    def _shared(self, name: str) -> tuple[dict[str, Any], dict[overrides.Path, str]]:
        """A recipe's tree with the images of the first one, their size and their crops; batch and further views stay its own."""
        tree, places = read(self.sources[name])
        first, first_places = deepcopy(self.first)
        own = {key: value for key, value in _data(tree).items() if key in OWN}
        tree["data"] = {key: value for key, value in _data(first).items() if key not in OWN} | own
        tree["image_size"] = first.get("image_size")
        return tree, places | {
            path: at for path, at in first_places.items() if path[:1] in (("data",), ("image_size",))
        }

    def _note_views(self, name: str, tree: dict[str, Any], given: Sequence[str]) -> None:
        """Note what of the images and their crops is another than the recipe itself says."""
        own, _ = read(self.sources[name])
        overrides.apply(own, {}, given)
        defaults = {key: option.default for key, option in registry.options(BatchSettings).items()}
        before, after = (
            {f"data.{key}": value for key, value in {**defaults, **_data(each)}.items() if key not in PRACTICAL}
            | {"image_size": each.get("image_size")}
            for each in (own, tree)
        )
        for key, value in lists(after).items():
            own_value = lists(before).get(key)
            note = f"{name}: {key}={value} as in {next(iter(self.sources))}"
            note += f"; its recipe says {own_value}" if key in before else ""
            if value != own_value and note not in self.notes:
                self.notes.append(note)

    def _check(self) -> None:
        """Raise UserError for what no recipe can take, and for what would make the rows unlike."""
        for word, takers in self.takers.items():
            name, text = word.split(":", 1) if word in self.own else (next(iter(self.sources)), word)
            if name not in self.sources:
                here = ", ".join(self.sources)
                raise UserError(f"override '{word}': no recipe '{name}'{nearest(name, self.sources)} Here are: {here}")
            if key_of(text) == "seed":
                raise UserError(f"override '{word}': the seeds of a bench are 0, 1, …; --seeds says how many")
            if key_of(text) in LENGTHS and (is_swept(text) or name != next(iter(self.sources))):
                raise UserError(f"override '{word}': all rows have the same budget; see --equal and --budget")
            if not takers:  # say so as the recipe would
                tree, places = self._shared(name)
                overrides.apply(tree, places, sweep([text])[0])
                Draft(tree, places).recipe()
        sources = [variant.draft.source() for variant in self._made.values()]
        if any(source != sources[0] for source in sources):
            raise UserError("all rows see the same images: give one data=… for all recipes")


def label(source: str) -> str:
    """What a recipe is called: its name, or its file's."""
    return Path(source).stem if Path(source).suffix in (".yaml", ".yml") else source


def is_swept(text: str) -> bool:
    """Whether an override stands for several values."""
    return len(sweep([text])) > 1


def key_of(text: str) -> str:
    """What stands before the `=` of an override."""
    return text.partition("=")[0]


def has_option(tree: dict[str, Any], key: str) -> bool:
    """Whether the component that a recipe has in a role takes the option `role.option`; other keys are for all recipes."""
    role, _, option = key.partition(".")
    if role not in SWAPPED or role == "data" or option in ("", "name"):
        return True
    choice = tree[role]
    name = choice.get("name") if isinstance(choice, dict) else choice
    if name is None:  # a loss that follows the target
        return False
    return name not in registry.names(role) or option in registry.options(
        registry.find(role, name), registry.ROLES[role].facts
    )


def _data(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's section `data` as a mapping."""
    given = tree.get("data", "shapes")
    return {"name": "shapes", **given} if isinstance(given, dict) else {"name": given}
