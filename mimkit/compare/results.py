"""results.json: what a bench found, from the folders of its runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from mimkit.compare.cost import Cost
from mimkit.compare.plan import Variant
from mimkit.train.run import read_metrics

Status = Literal["waiting", "running", "done", "failed", "partial"]
Kind = Literal["recipe", "untrained", "teacher"]
MEANS = ("images", "seconds", "images_per_s", "flops", "flops_target", "flops_stage", "seconds_stage", "parameters",
         "encoder_parameters")  # fmt: skip
HEALTH = ("effective_rank", "patch_similarity", "r2", "code_accuracy")
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # Student, 1 to 10 degrees


@dataclass
class Seed:
    """One run of a row. Fields as in results.json; None where not known."""

    seed: int
    folder: str
    status: Status = "waiting"
    error: str | None = None
    stage: str | None = None
    images: int | None = None
    seconds: float | None = None
    images_per_s: float | None = None
    flops: float | None = None
    flops_target: float | None = None
    flops_stage: float = 0.0
    seconds_stage: float = 0.0
    peak_memory: int | None = None
    parameters: int | None = None
    encoder_parameters: int | None = None
    loss: float | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    health: dict[str, float] = field(default_factory=dict)

    def read_training(self, folder: Path, cost: Cost) -> None:
        """Take over what the finished run in `folder` says, and what it cost."""
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.images, self.peak_memory, self.loss = summary["images"], summary["peak_memory"], summary["loss"]
        self.images_per_s, self.seconds = summary["images_per_s"], round(training_seconds(folder), 2)
        self.health = {name: summary[name] for name in HEALTH if name in summary}
        self.flops, self.flops_target = cost.step * summary["images"], cost.target * summary["images"]
        self.parameters, self.encoder_parameters = cost.parameters, cost.encoder_parameters

    def read_scores(self, folder: Path) -> None:
        """Take over the scores in the eval.json of `folder`."""
        for probe, told in json.loads((folder / "eval.json").read_text(encoding="utf-8"))["probes"].items():
            score = {"metric": told["metric"], "value": told[told["metric"]]}
            self.scores[probe] = score | {key: told[key] for key in ("standard_error",) if key in told}


@dataclass
class Row:
    """A line of the table.

    kind: a recipe; its encoder with the weights that training begins with; or the network that gives it its target.
    variant: of which recipe. seeds: its runs. encoder: what it is and how large, in words.
    """

    name: str
    kind: Kind
    variant: Variant
    seeds: list[Seed]
    encoder: str = ""

    @property
    def done(self) -> list[Seed]:
        """The seeds that are done."""
        return [seed for seed in self.seeds if seed.status == "done"]

    @property
    def status(self) -> Status:
        """Of the row as a whole."""
        found = {seed.status for seed in self.seeds}
        if found == {"waiting"}:
            return "waiting"
        if found & {"running", "waiting"}:
            return "running"
        return "partial" if len(found) == 2 else found.pop()

    def told(self) -> dict[str, Any]:
        """The row as results.json has it: means over the seeds that are done, with their confidence intervals."""
        known = {name: [x for seed in self.done if (x := getattr(seed, name)) is not None] for name in MEANS}
        memory = [seed.peak_memory for seed in self.done if seed.peak_memory is not None]
        return {
            "name": self.name,
            "kind": self.kind,
            "recipe": self.variant.recipe,
            "changes": list(self.variant.changes),
            "status": self.status,
            "error": next((seed.error for seed in self.seeds if seed.error), None),
            "encoder": self.encoder,
            "seeds": [asdict(seed) for seed in self.seeds],
            "scores": {probe: _interval(probe, self.done) for probe in (self.done[0].scores if self.done else ())},
            **{name: mean(values) if values else None for name, values in known.items()},
            "peak_memory": max(memory, default=None),
        }


def training_seconds(folder: Path) -> float:
    """Seconds that a run spent training, without its probes, pictures and checkpoints."""
    lines = [line for line in read_metrics(folder) if "loss" in line]
    seen = [0, *(line["images"] for line in lines)]
    return sum((line["images"] - before) / line["images_per_s"] for before, line in zip(seen, lines))


def ci95(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean by Student's t; None for a single value."""
    return t95(len(values) - 1) * stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def t95(degrees: int) -> float:
    """Quantile 0.975 of Student's t: tabulated, from 11 degrees of freedom on by its expansion in their inverse."""
    return T95[degrees - 1] if degrees <= len(T95) else 1.959964 + 2.372271 / degrees + 2.822498 / degrees**2


def _interval(probe: str, seeds: Sequence[Seed]) -> dict[str, Any]:
    values = [seed.scores[probe]["value"] for seed in seeds]
    return {"metric": seeds[0].scores[probe]["metric"], "mean": mean(values), "ci95": ci95(values), "values": values}
