"""`mimkit bench`: recipes trained with the same images, budget and seeds, scored by the same probes; a table and a page."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import mean
from typing import Any, cast

import mimkit
from mimkit.compare import length
from mimkit.compare.cost import Cost, size
from mimkit.compare.keep import code_version, folder_of
from mimkit.compare.plan import Plan, Variant
from mimkit.compare.report import write_report
from mimkit.compare.report_rows import FORMAT, read_results, read_rows
from mimkit.compare.request import Request, budget_of, images_of, is_of_probes, order_of
from mimkit.compare.results import Kind, Row, Seed
from mimkit.compare.run import Currency, Runs
from mimkit.compare.table import aligned, markdown, table
from mimkit.compare.tell import Teller
from mimkit.compare.units import millions
from mimkit.compare.work import Failed, Stopped, Worker, alone
from mimkit.disk import write_text
from mimkit.errors import UserError
from mimkit.evaluate.options import OF_ENCODERS
from mimkit.model import build_encoder
from mimkit.recipe import Recipe
from mimkit.signals import StopRequest
from mimkit.train.run import environment

UNEQUAL = 0.1  # share of the budget by which a row may miss it untold


def compare(request: Request) -> bool:
    """Do what is asked for; gives whether a recipe's row is done. Raises UserError before any work, and Stopped."""
    options = [word for word in request.words if is_of_probes(word)]
    plan = Plan([word for word in request.words if word not in options])
    first = plan.variants[0].placed
    order = order_of(first, request.probes, options)
    seen = images_of(first, order)
    budget = budget_of(request, plan, first, seen.told["train"])
    with alone(request.out) as lock, StopRequest() as stop:
        worker = Worker([word for path in request.plugins for word in ("--plugin", str(path))], lock, stop)
        runs = Runs(
            out=request.out,
            images=seen.told["train"],
            fingerprint=seen.fingerprint,
            labels=seen.labels,
            equal=cast(Currency, request.equal),
            budget=budget,
            order=order,
            probe_options=options,
            version=code_version(request.plugins),
            worker=worker,
            teller=Teller(),
        )
        return Bench(request, plan, runs, seen.told).work()


class Bench:
    """Goes through the rows seed by seed, so that after the first seed all of them have a score."""

    def __init__(self, request: Request, plan: Plan, runs: Runs, data: Mapping[str, Any]):
        self.request, self.plan, self.runs, self.data = request, plan, runs, data
        self.say = runs.teller.say
        self.started, self.finished, self.environment = _now(), "", environment(0)
        self.rows = [self._row(variant.name, "recipe", variant) for variant in plan.variants]
        self.others = dict[str, Row]()  # the untrained and the teachers, by what makes them distinct
        self.late: list[Row] = []  # those of them that came to light on the way
        for row in tuple(self.rows):
            if not row.variant.reads_stage:
                self.rows += self._add_untrained(row, row.variant.placed)

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
        self.rows += self.late
        self.runs.teller.left = sum(len(row.seeds) for row in self.late)
        for row in self.late:
            for seed in row.seeds:
                self._attempt(row, seed)
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
                "probe_options": list(runs.probe_options),
                "plugins": [str(path) for path in request.plugins],
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
        cost = self.runs.cost(variant, seed.seed)
        if cost.taught and not OF_ENCODERS.issuperset(self.request.probes):
            self.late += self._add_teacher(variant, cost)
        if variant.reads_stage and not row.encoder:
            self.late += self._add_untrained(row, self.runs.opened(variant, seed.seed))
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

    def _add_untrained(self, row: Row, recipe: Recipe) -> list[Row]:
        """The row of an encoder, if it is new. One that cannot be built is told of by its recipe's row."""
        try:
            count = size(build_encoder(recipe)[1])
        except UserError:
            return []
        row.encoder = f"{recipe.encoder.name}, {millions(count)} parameters"
        name = f"untrained {recipe.encoder.name} {millions(count)}"
        name = f"{name} of {row.name}" if name in {other.name for other in self.others.values()} else name
        key = json.dumps([recipe.encoder.name, recipe.encoder.options, recipe.image_size])
        return self._add(key, self._row(name, "untrained", row.variant, count), row.encoder)

    def _add_teacher(self, variant: Variant, cost: Cost) -> list[Row]:
        """The row of a frozen network that gives a recipe its target, if it is new."""
        recipe = variant.placed
        target = next(iter(recipe.objectives.values())).target
        key = json.dumps([target.name, target.options, recipe.image_size, recipe.encoder.options.get("patch_size")])
        row = self._row(f"teacher of {variant.name}", "teacher", variant, cost.target_parameters)
        return self._add(key, row, f"{target.name}, {millions(cost.target_parameters)} parameters")

    def _add(self, key: str, row: Row, encoder: str) -> list[Row]:
        if key in self.others:
            return []
        row.encoder = encoder
        self.others[key] = row
        return [row]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
