"""What the report knows of a row: the bench's results.json, and what lies in the folders of its runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

from mimkit import strict_yaml
from mimkit.disk import read_json_lines
from mimkit.errors import UserError

FORMAT = 1  # of results.json
NORMAL = 1.96  # standard errors to each side of a 95 % interval


@dataclass(frozen=True)
class Score:
    """A row's score by one probe, in percent.

    mean, values: over the seeds that are done.
    ci95: half the width of the 95 % interval of the mean over the seeds; None for a single value.
    standard_error: of one value, from the number of test images; None where the metric has none.
    """

    mean: float
    values: tuple[float, ...]
    ci95: float | None
    standard_error: float | None

    @property
    def half_width(self) -> float | None:
        """Half a 95 % interval: over the seeds, or of a single value by the test set; None where there is neither."""
        if self.ci95 is not None or self.standard_error is None:
            return self.ci95
        return NORMAL * self.standard_error

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half_width is None else f"{self.mean:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True)
class Row:
    """One row of the bench.

    number: its place in results.json, which settles its colour and mark.
    kind: recipe, untrained or teacher. status, error: as the bench tells them.
    means: images, seconds, images_per_s, flops, … and the tokenizer's and target's shares, over the seeds that are done;
        what is not known is absent. health: likewise, the label-free figures.
    folders: the run folders of its seeds that exist, those that are done first.
    text, recipe: its resolved recipe, as YAML and as a tree; empty where no run has begun.
    """

    number: int
    name: str
    kind: str
    status: str
    error: str | None
    encoder: str
    seeds: tuple[Mapping[str, Any], ...]
    scores: dict[str, Score]
    means: dict[str, float]
    health: dict[str, float]
    folders: tuple[Path, ...]
    text: str
    recipe: dict[str, Any]

    @property
    def flops(self) -> float | None:
        """Operations of the whole training, the tokenizer's included."""
        return self._with_stage("flops")

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole training, the tokenizer's included."""
        return self._with_stage("seconds")

    @property
    def done(self) -> int:
        """How many seeds are done."""
        return sum(seed["status"] == "done" for seed in self.seeds)

    def begins_as(self, other: "Row") -> bool:
        """Whether the two have the same encoder for the same size of image: so they begin with the same weights."""
        if not (self.recipe and other.recipe):
            return self.encoder == other.encoder
        return all(self.recipe.get(key) == other.recipe.get(key) for key in ("encoder", "image_size"))

    def metrics(self) -> list[list[dict[str, Any]]]:
        """The lines of metrics.jsonl of each seed that has some."""
        files = [folder / "metrics.jsonl" for folder in self.folders]
        return [lines for file in files if file.is_file() and (lines := read_json_lines(file))]

    def _with_stage(self, key: str) -> float | None:
        own = self.means.get(key)
        return None if own is None else own + self.means.get(f"{key}_stage", 0.0)


def read_results(folder: Path) -> dict[str, Any]:
    """The bench's results.json. Raises UserError where it is missing, damaged or of another format."""
    path = folder / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if results.get("format") != FORMAT:
        raise UserError(f"{path} has format {results.get('format')}, this mimkit reads {FORMAT}")
    return results


def read_rows(folder: Path, results: Mapping[str, Any]) -> list[Row]:
    """The rows of results.json, in its order."""
    return [_row(folder, number, told) for number, told in enumerate(results["rows"])]


def _row(folder: Path, number: int, told: Mapping[str, Any]) -> Row:
    seeds = sorted(told.get("seeds", ()), key=lambda seed: seed["status"] != "done")
    done = [seed for seed in seeds if seed["status"] == "done"]
    folders = tuple(path for seed in seeds if seed.get("folder") and (path := folder / seed["folder"]).is_dir())
    recipes = [path for one in folders if (path := one / "recipe.yaml").is_file()]
    text = recipes[0].read_text(encoding="utf-8") if recipes else ""
    return Row(
        number=number,
        name=told["name"],
        kind=told["kind"],
        status=told["status"],
        error=told.get("error"),
        encoder=told.get("encoder") or "",
        seeds=tuple(told.get("seeds", ())),
        scores={probe: _score(probe, score, done) for probe, score in (told.get("scores") or {}).items()},
        means=_means(done) | {key: value for key, value in told.items() if _is_number(value)},
        health=_means([seed.get("health") or {} for seed in done]),
        folders=folders,
        text=text,
        recipe=strict_yaml.read(text, "recipe.yaml")[0] if text else {},
    )


def _score(probe: str, score: Mapping[str, Any], done: list[Mapping[str, Any]]) -> Score:
    errors = [seed.get("scores", {}).get(probe, {}).get("standard_error") for seed in done]
    known = [error for error in errors if error is not None]
    error = sqrt(mean(x * x for x in known)) if known else None
    return Score(score["mean"], tuple(score.get("values") or [score["mean"]]), score.get("ci95"), error)


def _means(told: list[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number over those that tell it."""
    keys = dict.fromkeys(key for one in told for key in one if key != "seed" and _is_number(one[key]))
    return {key: mean(one[key] for one in told if _is_number(one.get(key))) for key in keys}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
