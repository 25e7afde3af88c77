"""What a bench shows: which row is best, whether its lead is real, and at what price."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, pi, sqrt
from statistics import mean, variance

import numpy as np

from mimkit.compare.report_rows import NORMAL, Row, Score

LEVEL = 0.05  # of p, below which a difference counts as real
ANGLES = 20_000  # of the numerical integral


def two_sided_p(t: float, dof: float) -> float:
    """P(|T| >= |t|) of Student's t with `dof` degrees of freedom, at least 1.

    With t = sqrt(dof) tan(a) the density of the angle is proportional to cos(a)^(dof - 1).
    """
    low = np.arctan(abs(t) / sqrt(dof))
    width = (pi / 2 - low) / ANGLES
    tail = (np.cos(low + width * (np.arange(ANGLES) + 0.5)) ** (dof - 1)).sum() * width
    return float(min(1.0, 2 * tail * exp(lgamma((dof + 1) / 2) - lgamma(dof / 2)) / sqrt(pi)))


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """p of Welch's t-test, two-sided: of two means that were equal, how often would they differ as much?

    Each needs two values. Where neither varies: 0 for different means, else 1.
    """
    parts = [variance(values) / len(values) for values in (a, b)]
    if not sum(parts):
        return float(mean(a) == mean(b))
    dof = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    return two_sided_p((mean(a) - mean(b)) / sqrt(sum(parts)), dof)


@dataclass(frozen=True)
class Difference:
    """How far one score lies above another.

    points: percentage points.
    p: of Welch's t-test over the seeds; None where one of both has a single seed.
    apart: whether it is more than chance: p below 0.05, or with a single seed outside 95 % of what the choice of test
        images alone makes (which says nothing of other seeds).
    """

    points: float
    p: float | None
    apart: bool


def difference(a: Score, b: Score) -> Difference:
    """How far `a` lies above `b`."""
    points = a.mean - b.mean
    if min(len(a.values), len(b.values)) > 1:
        p = welch(a.values, b.values)
        return Difference(points, p, p < LEVEL)
    if a.standard_error is None or b.standard_error is None:
        return Difference(points, None, False)
    return Difference(points, None, abs(points) > NORMAL * sqrt(a.standard_error**2 + b.standard_error**2))


@dataclass(frozen=True)
class Findings:
    """What the rows show by one probe.

    ranking: the trained rows that have a score, best first.
    lead: of the first over the second; None where there is no second.
    rivals: rows that are not told apart from the best.
    idle: rows that are not told apart from the untrained encoder like theirs, or lie below it.
    """

    probe: str
    ranking: list[Row]
    lead: Difference | None
    rivals: list[Row]
    idle: list[Row]


def find(rows: Sequence[Row], probe: str) -> Findings:
    """What `rows` show by `probe`, whose scores are better the higher they are."""
    scored = [row for row in rows if row.kind == "recipe" and probe in row.scores]
    ranking = sorted(scored, key=lambda row: -row.scores[probe].mean)
    above = [difference(ranking[0].scores[probe], row.scores[probe]) for row in ranking[1:]]
    rivals = [row for row, found in zip(ranking[1:], above, strict=True) if not found.apart]
    floors = [row for row in rows if row.kind == "untrained" and probe in row.scores]
    idle = [row for row in ranking if any(row.begins_as(floor) and not _above(row, floor, probe) for floor in floors)]
    return Findings(probe, ranking, above[0] if above else None, rivals, idle)


def _above(row: Row, floor: Row, probe: str) -> bool:
    found = difference(row.scores[probe], floor.scores[probe])
    return found.apart and found.points > 0


def cheapest(rows: Sequence[Row]) -> Row | None:
    """The row of least compute, or of least time where not all computes are known; None where neither is."""
    for cost in ("flops", "seconds"):
        if rows and all(getattr(row, cost) for row in rows):
            return min(rows, key=lambda row: float(getattr(row, cost)))
    return None


def relative_cost(row: Row, other: Row) -> tuple[float, str] | None:
    """How many times `other`'s compute (or time) `row` took, and the word for which; None where neither is known."""
    for own, others, word in ((row.flops, other.flops, "compute"), (row.seconds, other.seconds, "time")):
        if own and others:
            return own / others, word
    return None
