"""`mimkit bench`: recipes trained with the same images, budget and seeds, scored by the same probes; a table and a page."""

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any, cast, get_args

import mimkit
from mimkit.compare import length
from mimkit.compare.cost import Cost, size
from mimkit.compare.keep import code_version, folder_of
from mimkit.compare.plan import LENGTHS, Plan, Variant, key_of
from mimkit.compare.report import write_report
from mimkit.compare.report_rows import FORMAT, read_results, read_rows
from mimkit.compare.results import Kind, Row, Seed
from mimkit.compare.run import Currency, Runs
from mimkit.compare.table import aligned, markdown, table
from mimkit.compare.tell import Teller
from mimkit.compare.units import millions
from mimkit.compare.work import Failed, Stopped, Worker, alone
from mimkit.data.open import open_data
from mimkit.disk import write_text
from mimkit.errors import UserError, nearest
from mimkit.evaluate.labelled import fingerprint, labelled_sources
from mimkit.evaluate.options import OF_ENCODERS, OF_IMAGES, PROBES, Order, read_order
from mimkit.model import build_encoder
from mimkit.recipe import Recipe
from mimkit.signals import StopRequest
from mimkit.train.run import environment

UNEQUAL = 0.1  # share of the budget by which a row may miss it untold


@dataclass(frozen=True)
class Request:
    """What `mimkit bench` is called with.

    words: recipes and overrides. seeds: how many. equal, budget: of what all rows get as much; None: images, as many as
    the first recipe takes. probes: names. out: the folder. plugins: files of components.
    """

    words: tuple[str, ...]
    seeds: int
    equal: str
    budget: float | None
    probes: tuple[str, ...]
    out: Path
    plugins: tuple[Path, ...] = ()


def compare(request: Request) -> bool:
    """Do what is asked for; gives whether a recipe's row is done. Raises UserError before any work, and Stopped."""
    options = [word for word in request.words if is_of_probes(word)]
    plan = Plan([word for word in request.words if word not in options])
    first = plan.variants[0].placed
    order = _order(first, request.probes, options)
    data, seen = _images(first, order)
    budget = _budget(request, plan, first, data["train"])
    with alone(request.out) as lock, StopRequest() as stop:
        worker = Worker([word for path in request.plugins for word in ("--plugin", str(path))], lock, stop)
        runs = Runs(
            out=request.out,
            images=data["train"],
            fingerprint=seen,
            equal=cast(Currency, request.equal),
            budget=budget,
            order=order,
            probe_options=options,
            version=code_version(request.plugins),
            worker=worker,
            teller=Teller(),
        )
        return Bench(request, plan, runs, data).work()


def is_of_probes(word: str) -> bool:
    """Whether a word is an option of probes: `knn.k=10`, or `bank=10000` for all."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (key.partition(".")[0] in PROBES or key in OF_IMAGES)


def _order(first: Recipe, probes: Sequence[str], options: Sequence[str]) -> Order:
    """The probes with all their options, checked as `mimkit eval` will. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "recipe.yaml", first.to_yaml())
        return read_order(Path(folder), probes, options)


def _images(first: Recipe, order: Order) -> tuple[dict[str, Any], str]:
    """The images' name and numbers, as results.json has them, and what changes with them. Raises UserError."""
    data = open_data(first.data.name, first.data.options, first.image_size, first.encoder.options.get("in_chans", 3))
    if order.data is not None:
        labelled_sources(data)
    counts = {"train": len(data.train), "test": len(data.test) if data.test else 0}
    return {"name": data.name, **counts}, fingerprint(data.name, data.train)


def _budget(request: Request, plan: Plan, first: Recipe, images: int) -> float:
    """What each recipe gets. Raises UserError where that is not told, or told twice, or of what no recipe can get."""
    if request.equal not in get_args(Currency):
        known = get_args(Currency)
        raise UserError(
            f"--equal {request.equal}{nearest(request.equal, known) or ';'} It is one of {', '.join(known)}"
        )
    lengths = [text for text in (*plan.general, *plan.own) if key_of(text).rpartition(":")[2] in LENGTHS]
    if request.budget is not None and lengths:
        raise UserError(f"override '{lengths[0]}': --budget says how long each recipe is trained")
    if request.budget is not None and request.budget <= 0:
        raise UserError(f"--budget {request.budget:g} should be greater than 0")
    if request.budget is not None:
        return request.budget
    if request.equal != "images":
        raise UserError(f"--equal {request.equal} needs --budget {request.equal.upper()}")
    return length.own_steps(first, images) * length.batch_of(first, images)


class Bench:
    """Goes through the rows seed by seed, so that after the first seed all of them have a score."""

    def __init__(self, request: Request, plan: Plan, runs: Runs, data: Mapping[str, Any]):
        self.request, self.plan, self.runs, self.data = request, plan, runs, data
        self.say = runs.teller.say
        self.started, self.finished, self.environment = _now(), "", environment(0)
        self.rows = [self._row(variant.name, "recipe", variant) for variant in plan.variants]
        self.rows += self._untrained_rows()
        self.teachers = dict[str, Row]()

    def work(self) -> bool:
        """Train and score all; gives whether a recipe's row is done. Raises Stopped."""
        for text, takers in self.plan.applies.items():
            self.say(f"note: {text} is for {', '.join(takers)}; the others have no such option")
        for note in self.notes():
            self.say(f"note: {note}")
        self.runs.teller.left = self.request.seeds * len(self.rows)
        for number in range(self.request.seeds):
            for row in self.rows:
                self._attempt(row, row.seeds[number])
        self.rows += self.teachers.values()
        self.runs.teller.left = len(self.teachers)
        for row in self.teachers.values():
            self._attempt(row, row.seeds[0])
        self.finished = _now()
        self.tell()
        self.show()
        self.say(f"\n{aligned(self._table())}\nreport: {self.request.out / 'report.html'}")
        return any(row.done for row in self.rows if row.kind == "recipe")

    def notes(self) -> list[str]:
        """What must be known to compare the rows."""
        told = list(self.plan.notes)
        recipes = {row.name: row.variant.placed for row in self.rows if row.kind == "recipe"}
        batches = {name: length.batch_of(recipe, self.runs.images) for name, recipe in recipes.items()}
        if len(set(batches.values())) > 1:
            told.append("batch sizes differ: " + ", ".join(f"{name} {size}" for name, size in batches.items()))
        for row in self.rows:
            if row.kind == "recipe":
                told += [
                    f"{row.name} learns from a run of {stage.name}, which had the same budget; what that cost is told apart"
                    for stage in row.variant.stages.values()
                ]
                used = [x for seed in row.done if (x := getattr(seed, self.request.equal)) is not None]
                if used and abs(mean(used) / self.runs.budget - 1) > UNEQUAL:
                    told.append(
                        f"budgets are not equal: {row.name} took {mean(used):.4g} {self.request.equal} "
                        f"of {self.runs.budget:.4g}"
                    )
        return told

    def tell(self) -> None:
        """Write results.json."""
        request, runs = self.request, self.runs
        told = {
            "format": FORMAT,
            "mimkit": mimkit.__version__,
            "command": shlex.join(["mimkit", *sys.argv[1:]]),
            "started": self.started,
            "finished": self.finished or None,
            "settings": {
                "equal": request.equal,
                "budget": runs.budget,
                "seeds": list(range(request.seeds)),
                "probes": list(request.probes),
                "overrides": [*self.plan.general, *self.plan.own, *runs.probe_options],
                "applies": self.plan.applies,
            },
            "environment": self.environment,
            "data": self.data,
            "notes": self.notes(),
            "rows": [row.told() for row in self.rows],
        }
        write_text(request.out / "results.json", json.dumps(told, indent=1))

    def show(self) -> None:
        """Write the table and the page, from results.json."""
        write_text(self.request.out / "results.md", markdown(self._table()))
        write_report(self.request.out)

    def _table(self) -> list[list[str]]:
        return table(read_rows(self.request.out, read_results(self.request.out)), self.request.probes)

    def _attempt(self, row: Row, seed: Seed) -> None:
        """Bring one run of a row to its end; what goes wrong is noted in it."""
        seed.status = "running"
        self.tell()
        try:
            with self.runs.teller.job():
                {"recipe": self._recipe, "untrained": self._untrained, "teacher": self._teacher}[row.kind](row, seed)
            seed.status = "done"
        except Failed as error:
            seed.status, seed.error = "failed", str(error)
            self.say(f"{row.name}, seed {seed.seed} failed: {error}")
        except Stopped:
            seed.status = "waiting"
            raise
        finally:
            self.tell()
            self.show()

    def _recipe(self, row: Row, seed: Seed) -> None:
        variant, out = row.variant, self.request.out
        cost = self.runs.cost(variant)
        if cost.taught and not OF_ENCODERS.issuperset(self.request.probes):
            self._add_teacher(variant, cost)
        folder = self.runs.train(variant, seed.seed)
        seed.read_training(folder, cost)
        for stage in variant.stages.values():
            seed.stage = str(self.runs.train(stage, seed.seed).relative_to(out))
        seed.flops_stage, seed.seconds_stage = self._before(variant, seed.seed)
        self.runs.score(folder, f"{row.name}, seed {seed.seed}")
        seed.read_scores(folder)
        write_text(folder / "bench.json", json.dumps(asdict(seed), indent=1))

    def _untrained(self, row: Row, seed: Seed) -> None:
        folder = self.runs.untrained(row.name, row.variant, seed.seed)
        self.runs.score(folder, f"{row.name}, seed {seed.seed}")
        seed.read_scores(folder)

    def _teacher(self, row: Row, seed: Seed) -> None:
        folder = self.runs.teacher(row.name, row.variant)
        self.runs.score(folder, row.name, OF_ENCODERS, ["of=target"])
        seed.read_scores(folder)

    def _before(self, variant: Variant, seed: int) -> tuple[float, float]:
        """Operations and seconds of the training of all of a variant's stages."""
        flops = seconds = 0.0
        for stage in variant.stages.values():
            own, before = Seed(seed, ""), self._before(stage, seed)
            own.read_training(self.runs.train(stage, seed), self.runs.cost(stage))
            flops, seconds = flops + before[0] + (own.flops or 0), seconds + before[1] + (own.seconds or 0)
        return flops, seconds

    def _row(self, name: str, kind: Kind, variant: Variant, parameters: int | None = None) -> Row:
        seeds = 1 if kind == "teacher" else self.request.seeds
        runs = [
            Seed(n, str(folder_of(name, n)), parameters=parameters, encoder_parameters=parameters) for n in range(seeds)
        ]
        return Row(name, kind, variant, runs)

    def _untrained_rows(self) -> list[Row]:
        """A row for each distinct encoder. One that cannot be built is told of by its recipe's row."""
        found = dict[str, Row]()
        for row in self.rows:
            recipe = row.variant.placed
            try:
                count = size(build_encoder(recipe)[1])
            except UserError:
                continue
            row.encoder = f"{recipe.encoder.name}, {millions(count)} parameters"
            name = f"untrained {recipe.encoder.name} {millions(count)}"
            name = f"{name} of {row.name}" if name in {other.name for other in found.values()} else name
            key = json.dumps([recipe.encoder.name, recipe.encoder.options, recipe.image_size])
            if key not in found:
                found[key] = self._row(name, "untrained", row.variant, count)
                found[key].encoder = row.encoder
        return list(found.values())

    def _add_teacher(self, variant: Variant, cost: Cost) -> None:
        """A row for each distinct frozen network that gives a recipe its target."""
        recipe = variant.placed
        target = next(iter(recipe.objectives.values())).target
        key = json.dumps([target.name, target.options, recipe.image_size, recipe.encoder.options.get("patch_size")])
        if key not in self.teachers:
            row = self._row(f"teacher of {variant.name}", "teacher", variant, cost.target_parameters)
            row.encoder = f"{target.name}, {millions(cost.target_parameters)} parameters"
            self.teachers[key] = row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
