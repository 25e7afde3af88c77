"""From strict YAML and overrides to a `Recipe`: every mistake is one line: where it stands, what would be right."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mimkit
from mimkit import overrides, registry, schema, strict_yaml
from mimkit.data.kinds import kind_of
from mimkit.draft_objective import draft_objective
from mimkit.errors import UserError, nearest
from mimkit.geometry import grid_of
from mimkit.overrides import MAIN, OBJECTIVE_ROLES
from mimkit.recipe import Choice, Recipe, lists
from mimkit.runs import newest_finished
from mimkit.settings import BatchSettings, OptimSettings, ProbeSettings, TrainSettings, ViewSettings
from mimkit.stage import stages

KEYS = (
    "method", "image_size", "encoder", "mask", "head", "target", "normalizer", "loss", "objectives",
    "data", "optim", "train", "probe", "seed",
)  # fmt: skip
SETTINGS = "finetune/"  # folder of the files that are no recipes


def load_recipe(source: str | Path | Mapping[str, Any], given: Sequence[str] = ()) -> Recipe:
    """A recipe from a path, a shipped recipe's bare name or a dict, with overrides (`"optim.lr=3e-4"`).

    Raises UserError with one line per mistake.
    """
    return draft(source, given).recipe()


def draft(source: str | Path | Mapping[str, Any], given: Sequence[str] = ()) -> "Draft":
    """A recipe of which all that needs no component's code is checked: most mistakes are told before torch is loaded.

    Raises UserError with one line per mistake.
    """
    tree, places = read(source)
    overrides.apply(tree, places, given)
    return Draft(tree, places)


def read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], dict[strict_yaml.Path, str]]:
    """What a recipe says, unchecked, and where each part of it stands. Raises UserError where there is no such recipe."""
    if isinstance(source, Mapping):
        tree, places = strict_yaml.read(strict_yaml.dump(lists(dict(source))), "recipe")
        return tree, dict.fromkeys(places, "recipe")
    return strict_yaml.read_file(source, shipped(), "recipe")


def shipped() -> dict[str, Path]:
    """Names and paths of the recipes that come with mimkit; those of the papers as `imagenet/NAME`."""
    return {name: path for name, path in _files().items() if not name.startswith(SETTINGS)}


def shipped_settings() -> dict[str, Path]:
    """Names and paths of the authors' settings for fine-tuning, which `mimkit eval --settings` takes."""
    return {name.removeprefix(SETTINGS): path for name, path in _files().items() if name.startswith(SETTINGS)}


def _files() -> dict[str, Path]:
    root = next(found for place in mimkit.__path__ if (found := Path(place) / "recipes").is_dir())
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


class Draft:
    """A recipe on its way from a tree to a `Recipe`; collects every mistake on the way."""

    def __init__(self, tree: dict[str, Any], places: dict[strict_yaml.Path, str]):
        self.tree, self.places, self.problems = tree, places, list[str]()
        for key in tree.keys() - set(KEYS):
            self.problems.append(
                f"{self.place((key,))}: a recipe has no key '{key}'{nearest(key, KEYS) or ';'} Keys: {', '.join(KEYS)}."
            )
        self.method = self.value("method", str)
        self.image_size = self.size()
        self.sections: dict[str, Any] = {
            "optim": self.section("optim", OptimSettings),
            "train": self.section("train", TrainSettings),
            "probe": self.section("probe", ProbeSettings),
            "seed": self.value("seed", int, 0),
            "batches": self.batches(),
        }
        self.names()
        self.consistency(self.sections)
        self.stop_if_wrong()

    def stages(self) -> dict[strict_yaml.Path, str]:
        """Where a target asks for a run of another recipe (`checkpoint: recipe:vqkd`), and that recipe's name."""
        return stages(self.tree, self.objective_paths().values())

    def name_runs(self) -> None:
        """Put the newest finished run of a recipe in place of `recipe:NAME`."""
        for path, name in self.stages().items():
            run = newest_finished(str(read(name)[0].get("method")))
            if run is None:
                self.problems.append(
                    f"{self.place(path)}: no finished run of {name} in runs/: `mimkit train {name}` first, or "
                    f"{'.'.join(path)}=RUN"
                )
            else:
                overrides.section(self.tree, path[:-1])[path[-1]] = str(run)

    def recipe(self) -> Recipe:
        """The recipe, its components' options checked against their signatures."""
        self.name_runs()
        parts: dict[str, Any] = {
            "data": self.source(),
            "encoder": self.choice("encoder", ("encoder",)),
            "mask": self.choice("mask", ("mask",)),
            "objectives": {name: draft_objective(self, path) for name, path in self.objective_paths().items()},
        }
        self.stop_if_wrong()
        return Recipe(method=self.method, image_size=self.image_size, **self.sections, **parts)

    def stop_if_wrong(self) -> None:
        """Raise UserError with all mistakes found so far."""
        if self.problems:
            raise UserError("\n".join(dict.fromkeys(self.problems)))

    def place(self, path: strict_yaml.Path) -> str:
        """Where a path stands; for what is not there, where the nearest part above it stands."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "recipe")

    def value(self, key: str, annotation: Any, default: Any = None) -> Any:
        if key not in self.tree and default is not None:
            return default
        try:
            return schema.typed(self.tree.get(key), annotation)
        except ValueError as error:
            self.problems.append(f"{self.place((key,))}: {key} {error}")
            return None

    def size(self) -> Any:
        size = self.tree.get("image_size")
        pair = [size, size] if isinstance(size, int) else size
        if isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
            return tuple(pair)
        self.problems.append(f"{self.place(('image_size',))}: image_size should be pixels, 224 or [height, width]")
        return None

    def names(self) -> None:
        """Note components that do not exist and options that theirs do not have, as far as their source text tells."""
        for role in ("encoder", "mask", *OBJECTIVE_ROLES):
            given = overrides.section(self.tree, (role,))
            given = {"name": given} if isinstance(given, str) else given
            name = given.get("name") if isinstance(given, dict) else None
            if not isinstance(given, dict) or not isinstance(name, str):
                continue
            if name not in registry.names(role):
                self.problems.append(f"{self.place((role, 'name'))}: {registry.unknown(role, name)}")
            elif (known := registry.written_options(role, name)) is not None:
                for option in given.keys() - {"name", *known}:
                    self.problems.append(
                        schema.no_option(self.place((role, option)), f"{role} '{name}'", option, known)
                    )
        try:
            kind_of(str(self.data_section()["name"]))
        except UserError as error:
            self.problems.append(f"{self.place(('data', 'name'))}: {error}")

    def choice(self, role: str, path: strict_yaml.Path, default: str | None = None) -> Choice | None:
        """The component chosen at `path`, with its options checked; None (and a problem noted) if that fails."""
        given = overrides.section(self.tree, path)
        given = {"name": given} if isinstance(given, str) else given or ({"name": default} if default else {})
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            self.problems.append(f"{self.place(path)}: {role} needs a name; known: {', '.join(registry.names(role))}")
            return None
        try:
            component = registry.find(role, given["name"])
        except UserError as error:
            self.problems.append(f"{self.place((*path, 'name'))}: {error}")
            return None
        options = {key: value for key, value in given.items() if key != "name"}
        what = f"{role} '{given['name']}'"
        values, problems = schema.check(
            component, options, what, lambda name: self.place((*path, name)), registry.ROLES[role].facts
        )
        self.problems += problems
        return Choice(given["name"], values)

    def objective_paths(self) -> dict[str, strict_yaml.Path]:
        """Where each objective's roles stand; the one that is written flat stands at the top."""
        more = self.tree.get("objectives") or {}
        if not isinstance(more, dict) or any(not isinstance(one, dict) for one in more.values()) or MAIN in more:
            self.problems.append(
                f"{self.place(('objectives',))}: objectives are named mappings (not '{MAIN}') of head, target, …"
            )
            return {}
        paths: dict[str, strict_yaml.Path] = {name: ("objectives", name) for name in more}
        return {MAIN: (), **paths} if any(role in self.tree for role in OBJECTIVE_ROLES) or not more else paths

    def section(self, key: str, settings: type) -> Any:
        given = self.tree.get(key) or {}
        if not isinstance(given, dict):
            self.problems.append(f"{self.place((key,))}: {key} should be a mapping of options")
            return None
        values, problems = schema.check(settings, given, key, lambda name: self.place((key, name)))
        self.problems += problems
        return settings(**values) if not problems else None

    def data_section(self) -> dict[str, Any]:
        given = self.tree.get("data", "shapes")
        return {"name": "shapes", **given} if isinstance(given, dict) else {"name": given}

    def batches(self) -> BatchSettings | None:
        """The part of `data` that says how images become batches."""
        known = registry.options(BatchSettings)
        given = {key: value for key, value in self.data_section().items() if key in known and key != "views"}
        values, problems = schema.check(BatchSettings, given, "data", lambda key: self.place(("data", key)))
        self.problems += problems
        views = self.views(self.data_section().get("views"))
        return BatchSettings(**values | {"views": views}) if not problems else None

    def views(self, given: Any) -> dict[str, ViewSettings] | None:
        """The further views of each crop."""
        place = self.place(("data", "views"))
        if given is None:
            return None
        if not isinstance(given, dict) or "image" in given or any(not isinstance(v, dict) for v in given.values()):
            self.problems.append(f"{place}: data.views are named mappings (not 'image') of image_size, shift, …")
            return None
        views = {}
        for name, options in given.items():
            values, problems = schema.check(ViewSettings, options, f"view '{name}'", partial(self.view_place, name))
            self.problems += problems
            if values.get("shift") and values.get("image_size"):
                self.problems.append(f"{place}: view '{name}' is shifted, so it has the image's size; drop image_size")
            views[name] = ViewSettings(**values) if not problems else ViewSettings()
        return views

    def view_place(self, view: str, key: str) -> str:
        return self.place(("data", "views", view, key))

    def source(self) -> Choice | None:
        """The part of `data` that says where images come from: a source's name or a path, and the source's options."""
        section, ours = self.data_section(), registry.options(BatchSettings)
        name = str(section["name"])
        component = registry.find("data", kind_of(name))
        facts = registry.ROLES["data"].facts | (set() if name in registry.names("data") else {"path"})
        given = {key: value for key, value in section.items() if key != "name" and key not in ours}
        values, problems = schema.check(
            component, given, f"data '{name}'", lambda key: self.place(("data", key)), facts, also=tuple(ours)
        )
        self.problems += problems
        return Choice(name, values)

    def consistency(self, parts: Mapping[str, Any]) -> None:
        """What no single option can know."""
        optim, train, batches = parts["optim"], parts["train"], parts["batches"]
        if optim and (optim.lr is None) == (optim.base_lr is None):
            self.problems.append(f"{self.place(('optim',))}: optim needs lr or base_lr, and not both")
        if optim and (optim.schedule == "step") != bool(optim.drop_epochs):
            place = self.place(("optim", "schedule"))
            self.problems.append(
                f"{place}: optim.schedule=step needs optim.drop_epochs=[…], and no other schedule does"
            )
        if train and (train.epochs is None) == (train.max_steps is None):
            self.problems.append(f"{self.place(('train',))}: train needs epochs or max_steps, and not both")
        if train and batches and batches.batch_size % train.accumulate:
            self.problems.append(
                f"{self.place(('train', 'accumulate'))}: train.accumulate={train.accumulate} "
                f"must divide data.batch_size={batches.batch_size}"
            )
        patch_size = overrides.section(self.tree, ("encoder", "patch_size"))
        if self.image_size and type(patch_size) is int and patch_size > 0:
            try:
                grid_of(self.image_size, patch_size)
            except UserError as error:
                self.problems.append(f"{self.place(('image_size',))}: {error}")
        for path in self.objective_paths().values():
            cached = overrides.section(self.tree, (*path, "target", "cache")) is True
            if cached and batches and (batches.crop_scale != (1, 1) or batches.color_jitter):
                self.problems.append(
                    f"{self.place((*path, 'target', 'cache'))}: target.cache keeps what comes again, random crops and "
                    "colours do not: set data.crop_scale=[1,1] and data.color_jitter=0, or target.cache=false"
                )
        if batches and (batches.crop_scale[0] > batches.crop_scale[1] or batches.crop_ratio[0] > batches.crop_ratio[1]):
            self.problems.append(f"{self.place(('data',))}: crop_scale and crop_ratio are [lowest, highest]")
