"""The leaderboard: what stands in its rows, best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mimkit.compare.charts import Axis, swatch
from mimkit.compare.findings import Findings
from mimkit.compare.report_rows import Row
from mimkit.compare.strips import draw_strip
from mimkit.compare.units import duration, grouped, millions, plain, quantity

KINDS = ("recipe", "untrained", "teacher")
COSTS = ("Compute", "Time", "Peak memory", "Parameters")
SMALL = 0.01  # a share of the compute that need not be named
KIND_WORDS = {"untrained": "random initial weights: the floor", "teacher": "the target's own network: the ceiling"}


@dataclass(frozen=True)
class Cell:
    """A figure of the board and what is to be said of it in small letters, line by line."""

    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of the board. place: its rank by the first probe, empty where it has none. scores: figure and strip."""

    row: Row
    place: str
    mark: Markup
    words: str
    state: str
    scores: list[tuple[str, Markup]]
    costs: list[Cell]


def lines(rows: Sequence[Row], found: Findings, axes: Mapping[str, Axis], compute: tuple[float, str]) -> list[Line]:
    """The trained rows by their rank, then those without a score, then the untrained and the teachers.

    axes: of each probe's strips. compute: the unit of compute, its factor and its name.
    """
    unranked = [row for row in rows if row not in found.ranking]
    ordered = found.ranking + sorted(unranked, key=lambda row: KINDS.index(row.kind))
    return [
        Line(
            row=row,
            place=str(found.ranking.index(row) + 1) if row in found.ranking else "",
            mark=swatch(row.number) if row.kind == "recipe" else Markup(""),
            words=describe(row),
            state=_state(row),
            scores=[
                (str(row.scores.get(probe, "")), draw_strip(row, probe, axis, references(row, rows, probe)))
                for probe, axis in axes.items()
            ],
            costs=_costs(row, compute),
        )
        for row in ordered
    ]


def references(row: Row, rows: Sequence[Row], probe: str) -> list[Row]:
    """What a row's score is to be seen beside: the untrained encoder like its own, and the teachers."""
    scored = [other for other in rows if probe in other.scores]
    return [
        other for other in scored if other.kind == "teacher" or (other.kind == "untrained" and row.begins_as(other))
    ]


def describe(row: Row) -> str:
    """A row in words: "encoder vit, mask random 0.75, head decoder, target norm_pixels"."""
    if row.kind != "recipe":
        return KIND_WORDS.get(row.kind, row.kind)
    parts = [_part(row.recipe, role) for role in ("encoder", "mask", "head", "target")]
    objectives: Mapping[str, Any] = row.recipe.get("objectives") or {}
    more = [f"{name}: {_part(one, 'target')}" for name, one in objectives.items()]
    return ", ".join([part for part in parts if part] + more) or row.encoder


def _part(tree: Mapping[str, Any], role: str) -> str:
    part = tree.get(role)
    if not isinstance(part, Mapping):
        return ""
    ratio = f" {part['ratio']:g}" if isinstance(part.get("ratio"), float) else ""
    return f"{role} {part.get('name')}{ratio}"


def _state(row: Row) -> str:
    """What is to be said of a row that is not simply done."""
    if row.status == "done":
        return ""
    count = f"{row.done} of {len(row.seeds)} seeds"
    return {"failed": "failed", "waiting": "waiting", "running": f"running, {count} done"}.get(row.status, count)


def _costs(row: Row, compute: tuple[float, str]) -> list[Cell]:
    """What the columns of COSTS hold."""
    told, (factor, unit) = row.means, compute
    parts = {"teacher": told.get("flops_target", 0.0), "tokenizer": told.get("flops_stage", 0.0)}
    named = tuple(f"{name} {plain(part / factor)}" for name, part in parts.items() if part > SMALL * (row.flops or 0))
    stage = (f"tokenizer {duration(told['seconds_stage'])}",) if told.get("seconds_stage") else ()
    speed = (f"{grouped(told['images_per_s'])} images/s",) if told.get("images_per_s") else ()
    encoder = (f"encoder {millions(told['encoder_parameters'])}",) if told.get("encoder_parameters") else ()
    return [
        Cell(f"{plain(row.flops / factor)} {unit}", named) if row.flops else Cell(""),
        Cell(duration(row.seconds), stage + speed) if row.seconds else Cell(""),
        Cell(quantity(told["peak_memory"], "B") if told.get("peak_memory") else ""),
        Cell(millions(told["parameters"]), encoder) if told.get("parameters") else Cell(""),
    ]
