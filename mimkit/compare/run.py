"""The runs of a bench: each is trained and scored once, with what it needs before it."""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from mimkit.compare import length
from mimkit.compare.cost import Cost, cost_of
from mimkit.compare.keep import claim, folder_of, logged, plan_of
from mimkit.compare.plan import Variant
from mimkit.compare.tell import Teller
from mimkit.compare.work import Failed, Worker
from mimkit.disk import write_text
from mimkit.errors import UserError
from mimkit.evaluate.labelled import files_sha256
from mimkit.evaluate.options import OF_IMAGES, WITHOUT_LABELS, Order, Probe
from mimkit.model import build, build_encoder
from mimkit.recipe import Recipe
from mimkit.runs import is_finished
from mimkit.saved.encoder import NAME, save_encoder

Currency = Literal["images", "seconds", "flops"]
T = TypeVar("T")


@dataclass
class Runs:
    """What is trained and scored in the folder of a bench.

    out: that folder. images: how many there are to train on. fingerprint: changes with them. labels: with those scored.
    equal, budget: of what each recipe gets as much, and how much.
    order, probe_options: the probes and their options, as `mimkit eval` takes them.
    version: of the code; see `code_version`.
    """

    out: Path
    images: int
    fingerprint: str
    labels: str
    equal: Currency
    budget: float
    order: Order
    probe_options: Sequence[str]
    version: str
    worker: Worker
    teller: Teller
    _known: dict[tuple[str, str, int], Any] = field(default_factory=dict)

    def train(self, variant: Variant, seed: int) -> Path:
        """Train a variant, its stages first, unless it is done; gives the run's folder. Raises Failed and Stopped."""

        def work() -> Path:
            before = [self._stage(stage, seed) for stage in variant.stages.values()]
            folder, recipe = self.out / folder_of(variant.name, seed), self.opened(variant, seed)
            recipe = length.of_length(recipe, self.images, self.steps(variant), seed)
            self._train(folder, recipe, before, f"{variant.name}, seed {seed}: train")
            return folder

        return self._once("train", variant.name, seed, work)

    def score(self, folder: Path, what: str, leave_out: Set[str] = frozenset(), more: Sequence[str] = ()) -> None:
        """Score what a folder holds by the probes, unless it is done. Raises Failed and Stopped."""
        probes = {name: probe for name, probe in self.order.probes.items() if name not in leave_out}
        settings = {name: getattr(self.order.settings, name) for name in OF_IMAGES}
        options = [
            text for text in self.probe_options if text.partition("=")[0].partition(".")[0] in {*probes, *settings}
        ]
        scores = folder / "eval.json"
        if scores.is_file() and self._holds(json.loads(scores.read_text(encoding="utf-8")), probes, settings):
            return
        with logged(folder) as log, self.teller.unit(f"{what}: score"):
            self.worker.run(["eval", folder, *more, *options, "--probe", ",".join(probes), "-o", scores], log)

    def cost(self, variant: Variant, seed: int = 0) -> Cost:
        """What a training step of a variant costs; its stages of that seed are trained first. Raises Failed and Stopped."""
        recipe = self.opened(variant, seed)

        def work() -> Cost:
            torch.manual_seed(0)
            return cost_of(build(recipe))

        return self._once("cost", variant.name, 0, work)

    def steps(self, variant: Variant) -> int:
        """How many steps a variant gets of the budget: at least one."""
        batch = length.batch_of(variant.placed, self.images)
        if self.equal == "images":
            return max(1, round(self.budget / batch))
        if self.equal == "flops":
            return max(1, round(self.budget / (self.cost(variant).step * batch)))
        return max(1, round(self.budget * self._rate(variant) / batch))

    def untrained(self, name: str, variant: Variant, seed: int) -> Path:
        """The folder of a variant's encoder with the weights that its run of that seed begins with. Raises Failed."""

        def work() -> Path:
            folder, recipe = self.out / folder_of(name, seed), replace(self.opened(variant, seed), seed=seed)
            encoder = recipe.encoder
            self._claim(folder, f"{encoder}\n{recipe.image_size}\n{recipe.data}\n{seed}\n")
            if not (folder / NAME).with_suffix(".json").is_file():  # written last
                torch.manual_seed(seed)
                folder.mkdir(exist_ok=True)
                write_text(folder / "recipe.yaml", recipe.to_yaml())
                save_encoder(folder, build_encoder(recipe)[1], encoder.name, encoder.options)
            return folder

        return self._once("untrained", name, seed, work)

    def teacher(self, name: str, variant: Variant) -> Path:
        """The folder of a variant's target: its recipe alone. Raises Failed."""
        folder, recipe = self.out / folder_of(name, 0), self.opened(variant, 0)
        self._claim(folder, recipe.to_yaml())
        folder.mkdir(exist_ok=True)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        return folder

    def opened(self, variant: Variant, seed: int) -> Recipe:
        """The recipe before its length is settled; its stages are trained for it. Raises Failed and Stopped."""
        return variant.checked(lambda stage: self._stage(stage, seed))

    def _holds(self, told: Mapping[str, Any], probes: Mapping[str, Probe], settings: Mapping[str, Any]) -> bool:
        """Whether scores are of these probes, settings, labels and masks."""
        wanted = {name: json.loads(json.dumps(vars(probe))) for name, probe in probes.items()}
        found = {name: told["probes"][name]["options"] for name in told["probes"]}
        if found != wanted or told.get("labels_sha256", "") != self.labels:
            return False
        masks = [
            told["probes"][name]["files_sha256"] == files_sha256(Path(each["data"]))
            for name, each in wanted.items()
            if name in WITHOUT_LABELS
        ]
        return all(masks) and all(told.get(name) == value for name, value in settings.items())

    def _stage(self, stage: Variant, seed: int) -> Path:
        try:
            return self.train(stage, seed)
        except Failed as error:
            raise Failed(f"{stage.name}, which it needs: {error}") from error

    def _train(self, folder: Path, recipe: Recipe, before: Sequence[Path], what: str) -> None:
        self._claim(folder, recipe.to_yaml(), before)
        if is_finished(folder):
            return
        resume = ["--resume"] if (folder / "recipe.yaml").is_file() else []
        with logged(folder) as log, self.teller.unit(what):
            self.worker.run(["train", plan_of(folder), "--out", folder, *resume], log)

    def _claim(self, folder: Path, text: str, before: Sequence[Path] = ()) -> None:
        """Only what was made of the same text, images, code and stages is gone on with."""
        stages = [f"# {path}: {sha256(plan_of(path).read_bytes()).hexdigest()[:12]}" for path in before]
        head = [f"# {self.version}; images {self.fingerprint[:12]}", *stages]
        claim(folder, "\n".join([*head, text]), self.out / "old")

    def _rate(self, variant: Variant) -> float:
        """Images a second in a run of a few steps."""

        def work() -> float:
            folder = self.out / folder_of(variant.name, 0, "timing")
            self._train(folder, length.timed(self.opened(variant, 0)), (), f"{variant.name}: timing")
            return float(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["images_per_s"])

        return self._once("rate", variant.name, 0, work)

    def _once(self, kind: str, name: str, seed: int, work: Callable[[], T]) -> T:
        """What `work` gives; asked again, the same, be it a failure. Whatever goes wrong in it is Failed."""
        key = kind, name, seed
        if key not in self._known:
            try:
                self._known[key] = work()
            except (Failed, UserError) as error:
                self._known[key] = Failed(str(error).partition("\n")[0])
            except Exception as error:  # a component may raise what it likes
                self._known[key] = Failed(f"{type(error).__name__}: {error}".partition("\n")[0])
        found = self._known[key]
        if isinstance(found, Failed):
            raise found
        return found
